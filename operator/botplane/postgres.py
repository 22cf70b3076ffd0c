"""What the operator tells Postgres and hears from it: few calls, in threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import astuple
from datetime import datetime
from typing import Any, NamedTuple, TypeVar
from uuid import UUID, uuid4

import structlog

from botplane.api.conditions import Finding
from botplane.billing import store as billing_store
from botplane.billing.dunning.policy import notice_finding as dunning_finding
from botplane.billing.dunning.store import take_untold
from botplane.billing.payments.store import overdue_tenants
from botplane.billing.pricebook import PriceBook
from botplane.errors import Fenced, Rejected, Retryable
from botplane.kube.drift import digest
from botplane.store.epoch import newest_epoch, take_epoch
from botplane.store.errors import translated_errors
from botplane.store.pool import Role, connect, open_pool
from botplane.tenants import store as tenant_store
from botplane.tenants.accounts import AccountState, TenantAccount
from botplane.tenants.reconcile import Accounts
from botplane.usage import store as usage_store
from botplane.usage.forecast.policy import status_texts
from botplane.usage.forecast.store import forecast_pass
from botplane.usage.standing import SPEND, LimitState, Standing
from botplane.usage.status import bot_figures, limit_verdict, tenant_figures
from botplane.usage.status import notice_finding as limit_finding

log = structlog.get_logger()
T = TypeVar("T")

SHOWN_FOR_SECONDS = 60.0
UNAVAILABLE = "DatabaseUnavailable"
FENCED = (
    "This process was paused or cut off while another took over. It ends, to be started again; "
    "nothing is to be done. If this comes again and again, two installations use one database: "
    "give each its own."
)


class Reading(NamedTuple):
    """Where all tenants stand, as one round has read it."""

    stands: Mapping[UUID, Standing]
    bots: Mapping[UUID, usage_store.BotTotal]
    blocks: Mapping[UUID, Mapping[str, LimitState]]
    """Hard limits that are reached, after this round's decisions."""
    overdue: set[UUID]
    warnings: list[tuple[UUID, Finding]]

    def holds(self, tenant_id: UUID) -> frozenset[str]:
        """Return why a tenant has to be suspended."""
        reasons = {
            "SpendLimit" if scope == SPEND else "UsageLimit"
            for scope, state in self.blocks.get(tenant_id, {}).items()
            if state is LimitState.SUSPENDED
        }
        return frozenset(reasons | ({"PaymentOverdue"} if tenant_id in self.overdue else set()))


class News(NamedTuple):
    """What a round has changed."""

    moved: list[str]
    """Uids of tenants and bots whose status shall change."""
    warnings: list[tuple[UUID, Finding]]
    """What tenants are told, once."""
    is_back: bool
    """Postgres was away: who could not be registered meanwhile may try again."""


class Postgres:
    """The operator's calls of Postgres: skipped when nothing changed, refused unless it leads.

    While it is away, `follow` alone goes on asking: a thousand tenants that each wait for the
    same answer would leave no pass to anybody else.
    """

    def __init__(
        self,
        database_url: str,
        clock: Callable[[], datetime],
        identity: str,
        holds_lease: Callable[[], Awaitable[bool]],
    ) -> None:
        """Take an address, a clock, and as whom this process leads.

        Args:
            database_url: Address as libpq reads it.
            clock: Tells the time.
            identity: Name of this replica, which others read when they are refused.
            holds_lease: Proves, by a write to Kubernetes, that this process leads at that moment.
        """
        self._url = database_url
        self._epoch = uuid4()
        self._pool = open_pool(database_url, Role.OPERATOR, epoch=self._epoch)
        self._clock = clock
        self._identity = identity
        self._holds_lease = holds_lease
        self._leads = False
        """Its epoch was the newest once; from then on Postgres says when it is no longer."""
        self._taking_over = asyncio.Lock()
        self.fenced = asyncio.Event()
        """Another operator has taken over: this process must end."""
        self._registered: dict[UUID, str] = {}
        self._published: dict[str, tuple[str, int]] = {}
        self._states: dict[str, AccountState] = {}
        self._figures: dict[str, tuple[dict[str, Any] | None, float]] = {}
        self._forecasts: dict[str, str] = {}
        self._has_read = False
        self._away = ""
        """Why Postgres does not answer; empty while it does."""
        self._is_news = False
        """It was away, and nobody has been told yet that it is back."""
        self.returns = 0
        """How often it has come back: maybe as a standby that lacks what was told last."""

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def accounts(self) -> Accounts:
        """Return the billing accounts, as the tenants' room needs them."""
        return Accounts(self._register, self._close_tenant, self.state, self._open_tenants)

    async def publish(self, book: PriceBook) -> int:
        """Store a price book unless it is the one that was stored last."""
        content = book.content_hash.hex()
        known = self._published.get(book.plan)
        if known is None or known[0] != content:
            revision = await self.call(billing_store.publish_plan, book, self._clock())
            known = self._published[book.plan] = (content, revision)
        return known[1]

    def state(self, uid: str) -> AccountState | None:
        """Return what is known of a Tenant's account; None before the first answer of Postgres."""
        return self._states.get(uid, AccountState()) if self._has_read else None

    def usage(self, uid: str, shown: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the rounded usage of a bot, or what its status shows while nothing was read."""
        return self._figures.get(uid, (None, 0.0))[0] if self._has_read else shown

    async def follow(self) -> News | None:
        """Read where all tenants stand and enforce their limits; None while Postgres is away.

        What a status shows of usage stays for a minute, unless nothing had run before; a
        suspension or a limit shows at once.
        """
        try:
            if self.is_away:
                self._is_news = True
                await asyncio.to_thread(self._knock)
                self._away = ""
                self.returns += 1
                self._registered.clear()
                self._published.clear()
            reading = await self.call(_read, self._clock())
        except (Rejected, Retryable) as error:
            log.warning("Usage was not read", reason=error.reason, message=error.message)
            return None
        moved = [uid for uid, total in reading.bots.items() if self._shows(uid, bot_figures(total))]
        tenants = {*reading.stands, *reading.blocks, *reading.overdue}
        moved += [tenant_id for tenant_id in tenants if self._moves(tenant_id, reading)]
        gone = self._states.keys() - {str(tenant_id) for tenant_id in tenants}
        for uid in gone:
            del self._states[uid]
        first, self._has_read = not self._has_read, True
        changed = [*self._states, *self._figures] if first else [*map(str, moved), *gone]
        is_back, self._is_news = self._is_news, False
        return News(changed, reading.warnings, is_back)

    def _moves(self, tenant_id: UUID, reading: Reading) -> bool:
        stand, uid = reading.stands.get(tenant_id), str(tenant_id)
        before = self._states.get(uid, AccountState())
        shows = stand is not None and self._shows(tenant_id, self._figures_of(stand))
        self._states[uid] = AccountState(
            holds=reading.holds(tenant_id),
            limits=None
            if stand is None
            else limit_verdict(stand, reading.blocks.get(tenant_id, {})),
            usage=self._figures.get(uid, (None, 0.0))[0],
        )
        after = self._states[uid]
        return shows or (before.holds, before.limits) != (after.holds, after.limits)

    async def foresee(self) -> None:
        """Estimate what the running periods will cost; the next rounds show it."""
        try:
            found = await self.call(forecast_pass, self._clock())
        except (Rejected, Retryable) as error:
            log.warning("Nothing was foreseen", reason=error.reason, message=error.message)
        else:
            self._forecasts = status_texts(found)

    def _figures_of(self, stand: Standing) -> dict[str, Any] | None:
        figures, forecast = tenant_figures(stand), self._forecasts.get(str(stand.tenant_id))
        return figures if figures is None or forecast is None else figures | {"forecast": forecast}

    def _shows(self, tenant_or_bot: UUID, figures: dict[str, Any] | None) -> bool:
        """Take new figures if it is time; return whether they differ from those shown."""
        uid, now = str(tenant_or_bot), time.monotonic()
        last, at = self._figures.get(uid, (None, 0.0))
        if figures == last or not (_is_first(last, figures) or now - at >= SHOWN_FOR_SECONDS):
            return False
        self._figures[uid] = (figures, now)
        return True

    async def _register(self, account: TenantAccount) -> None:
        content = digest([str(field) for field in astuple(account)])
        if self._registered.get(account.tenant_id) != content:
            await self.call(tenant_store.register_tenant, account, self._clock())
            self._registered[account.tenant_id] = content

    async def _close_tenant(self, tenant_id: UUID) -> None:
        await self.call(tenant_store.close_tenant, tenant_id, self._clock())
        self._registered.pop(tenant_id, None)

    async def _open_tenants(self) -> Mapping[UUID, str]:
        return await self.call(tenant_store.open_tenants)

    @property
    def is_away(self) -> bool:
        """Whether Postgres did not answer, so that nobody but `follow` asks it."""
        return bool(self._away)

    def _knock(self) -> None:
        """Return if Postgres answers, with a pool of connections that live.

        The pool alone would wait for its own next attempt, and try its dead connections one by one.
        """
        with translated_errors():
            with connect(self._url):
                pass
            self._pool.check()

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what a store function says of a connection and these arguments.

        Who is fenced gets no answer, and so has nothing to report to anybody: it waits for its end.

        Raises:
            Retryable: Postgres is away; once that is known, it is raised at once. Or this process
                cannot prove that it leads.
        """
        try:
            if not self._leads:
                await self._take_over()
            return await self._ask(function, *arguments)
        except Retryable as error:
            if error.reason == UNAVAILABLE:
                self._away = error.message
            raise
        except Fenced:
            self.fenced.set()
            await asyncio.Event().wait()
            raise

    async def _take_over(self) -> None:
        """Make the epoch of this process the newest, once: at the first contact with Postgres.

        The order is what makes it safe, however long each step takes: see `store.epoch`.
        """
        async with self._taking_over:
            if self._leads:
                return
            seen = await self._ask(newest_epoch)
            # Equal when it was taken already, and the answer was lost.
            if seen != self._epoch:
                if not await self._holds_lease():
                    raise Retryable(
                        "LeadershipUnproven",
                        "The Lease could not be renewed before the first write.",
                    )
                if not await self._ask(self._replace, seen):
                    raise Retryable(
                        "LeadershipUnproven", "Another operator has taken over at the same time."
                    )
            self._leads = True

    def _replace(self, conn: Any, seen: UUID | None) -> bool:
        return take_epoch(conn, self._epoch, self._identity, seen=seen, now=self._clock())

    async def _ask(self, function: Callable[..., T], *arguments: Any) -> T:
        if self._away:
            raise Retryable(UNAVAILABLE, self._away)

        def run() -> T:
            try:
                with translated_errors(), self._pool.connection() as conn:
                    return function(conn, *arguments)
            except Fenced as error:
                # Here, where the task that waits for an answer may have been cancelled already.
                log.error("Fenced", message=str(error), advice=FENCED)  # noqa: TRY400 - no bug
                raise

        return await asyncio.to_thread(run)


def _is_first(last: dict[str, Any] | None, figures: dict[str, Any] | None) -> bool:
    """Return whether something has run for the first time, or anything is known at all."""
    nothing = "0.000"
    return last is None or (last["botHours"] == nothing != (figures or last)["botHours"])


def _read(conn: Any, now: datetime) -> Reading:
    stands, bots = usage_store.standings(conn, now)
    # A warning that was taken is never given again: a round that breaks off takes none.
    with conn.transaction():
        notices = usage_store.enforce_limits(conn, stands.values(), now)
        unpaid = take_untold(conn, now)
        return Reading(
            stands=stands,
            bots=bots,
            blocks=usage_store.open_blocks(conn, now),
            overdue=overdue_tenants(conn),
            warnings=[
                *((notice.tenant_id, limit_finding(notice)) for notice in notices),
                *((notice.tenant_id, dunning_finding(notice)) for notice in unpaid),
            ],
        )
