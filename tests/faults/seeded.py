"""The command `botplane` with one of our own bugs put into it: tests that stay green are no tests.

`BOTPLANE_SEEDED_BUG` names the bug, `BOTPLANE_RESYNC_SECONDS` shortens the time between full
lists, `BOTPLANE_STOP_AT_WORD` stops it with writes in flight. Nothing of this is in the product:
methods are replaced before the command starts.
"""

# ruff: noqa: PLC0415, SLF001 - a bug imports and replaces what it is in

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

BUGS: dict[str, Callable[[], None]] = {}


def put(owner: Any, name: str, wrong: Any) -> None:
    """Put something wrong in the place of a function."""
    setattr(owner, name, wrong)


def bug(seed: Callable[[], None]) -> Callable[[], None]:
    """Register a bug under its name."""
    BUGS[seed.__name__.replace("_", "-")] = seed
    return seed


@bug
def finalizer_forgotten() -> None:
    from botplane.runtime.cluster import Cluster

    async def add_finalizer(_self: Any, _body: Any, _finalizer: str) -> bool:
        return False

    put(Cluster, "add_finalizer", add_finalizer)


@bug
def finalizer_removed_before_the_namespace() -> None:
    from botplane.api.labels import TENANT_FINALIZER
    from botplane.kube.observe import Key
    from botplane.tenants.reconcile import TenantReconciler

    right = TenantReconciler._retain_or_delete

    async def wrong(self: Any, space: Any, days: int) -> None:
        body = self._cluster.objects.get(Key("Tenant", "", space.name.removeprefix("tenant-")))
        await self._cluster.remove_finalizer(body, TENANT_FINALIZER)
        await right(self, space, days)

    put(TenantReconciler, "_retain_or_delete", wrong)


@bug
def written_once_is_written_for_ever() -> None:
    from botplane.kube.drift import digest
    from botplane.kube.observe import Children

    right, written = Children.is_settled, set[str]()

    def wrong(self: Children, desired: Any) -> bool:
        known = digest(desired) in written or right(self, desired)
        written.add(digest(desired))
        return known

    put(Children, "is_settled", wrong)


@bug
def drift_is_not_seen() -> None:
    from botplane.kube import observe

    put(observe, "holds", lambda _observed, _desired: True)


@bug
def pruning_forgotten() -> None:
    from botplane.kube.apply import Applier

    async def prune(*_: Any) -> list[Any]:
        return []

    put(Applier, "prune", prune)


@bug
def deleted_by_name() -> None:
    from botplane.kube.client import KubeClient

    async def delete(self: Any, ref: Any, *_preconditions: str) -> None:
        await self._call("DELETE", ref)

    put(KubeClient, "delete", delete)


@bug
def foreign_namespace_taken() -> None:
    from botplane.tenants.reconcile import TenantReconciler

    async def claim(_self: Any, _context: Any) -> bool:
        return False

    put(TenantReconciler, "_claim", claim)


@bug
def ready_before_it_is_closed() -> None:
    from botplane.tenants.reconcile import TenantReconciler

    right = TenantReconciler._set_up

    async def wrong(self: Any, body: Any, context: Any, progress: Any) -> None:
        plan = self._plan(context.spec.plan_ref.name)
        await self._report(body, context.spec, plan, progress)
        await right(self, body, context, progress)

    put(TenantReconciler, "_set_up", wrong)


@bug
def suspension_forgotten() -> None:
    from botplane.bots import manifests

    put(manifests, "_replicas", lambda context: context.spec.replicas or 1)


@bug
def keys_not_derived() -> None:
    from botplane.bots import manifests

    # Known while the process lives: nothing is odd until it starts again.
    put(manifests, "derive_key", functools.cache(lambda *_: secrets.token_hex(32)))


@bug
def retry_after_ignored() -> None:
    from botplane.kube import client, errors

    def wrong(status: int, body: bytes, what: str, _after: str | None = None) -> Exception:
        return errors.answer_error(status, body, what)

    put(client, "answer_error", wrong)


@bug
def watches_give_up() -> None:
    from botplane.runtime import front_end

    def delays(_self: Any) -> Iterator[float]:
        return iter((0.1, 0.1))

    front_end.EndlessBackoff.__iter__ = delays  # type: ignore[method-assign]


@bug
def a_bug_ends_the_operator() -> None:
    from botplane.runtime.controller import Controller

    async def judged(self: Any, key: Any) -> str:
        await self._reconcilers[key[0]](key)
        return "changed"

    put(Controller, "_judged", judged)


@bug
def lost_events_stay_lost() -> None:
    from botplane.runtime.resync import Resync

    right = Resync.round

    async def wrong(self: Any, *kinds: Any) -> None:
        if self.last is None:
            await right(self, *kinds)

    put(Resync, "round", wrong)


@bug
def status_written_each_time() -> None:
    from botplane.api.conditions import merge
    from botplane.runtime import status

    put(status, "merge", lambda _before, *now: merge((), *now))


@bug
def lease_not_released() -> None:
    from botplane.runtime.lease import Lease

    async def release(_self: Any) -> None:
        return None

    put(Lease, "release", release)


@bug
def released_before_the_commit() -> None:
    from botplane.metering.policy import may_release
    from botplane.metering.reconcile import Metering

    right = Metering._settle_batch

    def wrong(self: Any, seen: Any) -> None:
        self._release([pod for pod, sight in seen if may_release(pod, sight)])
        right(self, seen)

    put(Metering, "_settle_batch", wrong)


@bug
def forgotten_before_the_commit() -> None:
    from botplane.metering.feed import Feed

    right = Feed.take

    def wrong(self: Any) -> Any:
        taken = right(self)
        self.put_back = lambda _uids: None
        return taken

    put(Feed, "take", wrong)


@bug
def later_ends_replace_earlier_ones() -> None:
    from botplane.metering import policy, store

    query, _, _ = store.QUERIES["write_intervals"].partition("WHERE EXCLUDED")
    put(store, "QUERIES", {**store.QUERIES, "write_intervals": query})
    put(policy, "better", lambda _old, new: new)


@bug
def vanished_is_billed_until_now() -> None:
    from botplane.metering import store

    query = store.QUERIES["close_vanished"].replace("i.last_seen_at)", "now())")
    put(store, "QUERIES", {**store.QUERIES, "close_vanished": query})


@bug
def heartbeat_of_a_dark_node() -> None:
    from botplane.metering.reconcile import Metering

    def wrong(self: Any, heard: Any) -> Any:
        return [(pod, heard[pod.kind]) for pod in self._feed.pods() if pod.running]

    put(Metering, "_running", wrong)


@bug
def stale_lists_are_believed() -> None:
    from botplane.metering.feed import Feed

    def wrong(self: Any, kind: Any, version: int) -> None:
        self._newest[kind] = version

    put(Feed, "_refuse_stale", wrong)


@bug
def a_lease_nobody_told_of_is_none() -> None:
    from botplane.metering.release import Cluster

    right = Cluster.lease
    put(Cluster, "lease", lambda self, node: right(self, node) or {})


@bug
def a_size_holds_from_the_beginning() -> None:
    from dataclasses import replace

    from botplane.metering import volumes
    from botplane.metering.evidence import Container

    put(volumes, "Container", lambda **of: replace(Container(**of), resized_at=None))


@bug
def a_row_for_each_look() -> None:
    from botplane.metering import store
    from botplane.metering.policy import settle

    def wrong(pod: Any, stored: Any, sight: Any) -> Any:
        return settle(pod, [row for row in stored if row.ended_at is not None], sight)

    put(store, "settle", wrong)


@bug
def complete_before_it_is_settled() -> None:
    from botplane.metering.reconcile import Metering

    right = Metering._settle

    def wrong(self: Any, taken: Any, stop: Any) -> bool:
        self._complete_until = taken.complete_until or self._complete_until
        self._beat(taken.heard)
        return right(self, taken, stop)

    put(Metering, "_settle", wrong)


@bug
def released_without_an_end() -> None:
    from botplane.metering import reconcile

    def wrong(pod: Any, _sight: Any) -> bool:
        return pod.deletion_at is not None and pod.finalizer is not None

    put(reconcile, "may_release", wrong)


@bug
def standby_not_waited_for() -> None:
    from botplane.metering import store

    put(store, "QUERIES", {**store.QUERIES, "commit_durably": "SELECT 1"})


@bug
def all_let_go_at_once() -> None:
    from botplane.metering.release import Pace

    put(Pace, "place", nullcontext)


@bug
def estimated_in_silence() -> None:
    from botplane.metering import metrics

    put(metrics.LAST_INEXACT, "set", lambda _moment: None)


@bug
def hold_not_heard() -> None:
    from botplane.api import labels

    put(labels, "LEGAL_HOLD", "botplane.io/another")


@bug
def hold_comes_too_late() -> None:
    from botplane.runtime.cluster import Cluster

    right = Cluster.live

    async def wrong(self: Any, body: Any, **how: bool) -> Any:
        there = await right(self, body, **how)
        if there is None or "deletion" not in there.get("spec", {}):
            return there
        deletion = {k: v for k, v in there["spec"]["deletion"].items() if k != "legalHold"}
        return {**there, "spec": {**there["spec"], "deletion": deletion}}

    put(Cluster, "live", wrong)


@bug
def unproven_isolation_is_believed() -> None:
    from botplane.tenants import network

    put(network, "NOT_PROBED", network.ENFORCED)


@bug
def old_leaders_are_not_fenced() -> None:
    from botplane import postgres
    from botplane.store.pool import open_pool

    put(postgres, "open_pool", lambda url, role, **_: open_pool(url, role))


def stop_before_writing(word: str) -> None:
    """Let the process freeze when it is about to write both a plan and an account.

    Args:
        word: A file; writes wait for each other from when it is there.
    """
    from botplane.billing import store as plans
    from botplane.tenants import store as accounts

    def stop() -> None:
        # To this thread: it goes no further, and the other one waits for it.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    both, end = threading.Barrier(2, stop), os._exit

    def leave(code: int) -> None:
        # What is in flight may be faster than the end of the process.
        asyncio.get_running_loop()._default_executor.shutdown(wait=True)  # type: ignore[attr-defined]
        end(code)

    def frozen(right: Callable[..., Any]) -> Callable[..., Any]:
        def wrong(*arguments: Any) -> Any:
            if Path(word).exists():
                both.wait()
            return right(*arguments)

        return wrong

    put(os, "_exit", leave)
    put(plans, "publish_plan", frozen(plans.publish_plan))
    put(accounts, "register_tenant", frozen(accounts.register_tenant))


def apply() -> None:
    """Put the bug in that the environment names, if any."""
    if word := os.environ.get("BOTPLANE_STOP_AT_WORD"):
        stop_before_writing(word)
    if name := os.environ.get("BOTPLANE_SEEDED_BUG"):
        BUGS[name]()
    if seconds := os.environ.get("BOTPLANE_RESYNC_SECONDS"):
        from botplane.runtime import resync

        resync.RESYNC_SECONDS = float(seconds)


if __name__ == "__main__":
    apply()
    from botplane.cli import app

    app()
