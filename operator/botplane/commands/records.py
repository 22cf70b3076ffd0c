"""Proofs and archives: audit chains, reconciliation, export and erasure."""

from __future__ import annotations

import getpass
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from botplane.api import labels as lb
from botplane.commands.asking import TenantName, ask, collection, order, told
from botplane.errors import Rejected

if TYPE_CHECKING:
    from psycopg import Connection

    from botplane.billing.proof.store import Difference, Head

app = typer.Typer()
audit = typer.Typer(no_args_is_help=True, help="The chains of who changed what.")
app.add_typer(audit, name="audit")


@audit.command("heads")
def audit_heads() -> None:
    """Print the last entry of every chain as JSON, to keep where nobody can change it."""
    from botplane.billing.proof import store

    heads = ask(lambda conn, _: store.audit_heads(conn))
    typer.echo(json.dumps([vars(head) for head in heads], indent=2))


@audit.command("verify")
def audit_verify(
    heads: Annotated[
        Path | None, typer.Option(help="Output of `audit heads` from an earlier day.")
    ] = None,
) -> None:
    """Prove that no entry of the audit chains was changed, removed or put in."""
    from botplane.billing.proof import store

    with told():
        known = [] if heads is None else _read_heads(heads)
    _tell_differences(
        ask(lambda conn, _: store.verify_audit(conn, known)), "The audit chains are intact."
    )


@app.command()
def reconcile(
    days: Annotated[
        int,
        typer.Option(min=1, max=36500, help="How far back events and invoices are compared."),
    ] = 70,
) -> None:
    """Prove that events, intervals, invoices, ledger and payments agree."""
    from botplane.billing.payments.policy import Unanswered
    from botplane.billing.proof import store

    processor, _ = collection()
    back = timedelta(days=days)
    found = ask(lambda conn, now: store.reconcile(conn, now - back, now))
    if processor is not None:
        try:
            found += ask(lambda conn, now: store.compare_processor(conn, processor, now - back))
        except Unanswered as error:
            typer.echo(f"{processor.name} was not compared: {error}", err=True)
            raise typer.Exit(1) from None
    _tell_differences(found, "All records agree.")


def _read_heads(file: Path) -> list[Head]:
    """Return what `audit heads` wrote.

    Raises:
        Rejected: The file does not hold that.
    """
    from botplane.billing.proof.store import Head

    try:
        return [Head(**head) for head in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError) as error:
        text = f"{file} is not an output of `botplane audit heads`: {error}"
        raise Rejected("FileInvalid", text) from None


def _new_file(file: Path) -> BinaryIO:
    try:
        return file.open("xb")
    except OSError as error:
        raise Rejected("FileNotWritten", f"{file}: {error.strerror}; name a new file.") from None


def _tell_differences(found: Sequence[Difference], none: str) -> None:
    """Write differences one a line, with exit code 1 when there is any."""
    for one in found:
        typer.echo(
            f"{one.check}: {one.tenant}: {one.subject}: {one.expected} expected, {one.found} found"
        )
    if found:
        raise typer.Exit(1)
    typer.echo(none)


@app.command("usage-archive")
def usage_archive(
    directory: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Where to; keep what is in it.")
    ],
) -> None:
    """Write usage that is older than its retention into files; Postgres forgets only what is there.

    A file has a month of usage events, hourly sums or intervals: CSV packed by gzip, with its
    SHA-256 beside it. Run it once a month.
    """
    from botplane.metering.archive import store
    from botplane.store.pool import Role

    def archive(conn: Connection[Any], now: datetime) -> None:
        for done in store.archive_usage(conn, directory, getpass.getuser(), now):
            typer.echo(f"{done.file}: {done.rows} rows, SHA-256 {done.sha256}")

    ask(archive, Role.BILLING)


@app.command("tenant-export")
def tenant_export(
    tenant: TenantName, file: Annotated[Path, typer.Argument(help="The zip to write.")]
) -> None:
    """Write everything that is stored about a tenant into an archive with checksums."""
    from botplane.billing.records import store

    with told():
        target = _new_file(file)
    try:
        with target:
            ask(lambda conn, now: store.export_tenant(conn, tenant, target, now))
    except typer.Exit:
        file.unlink()  # half an archive, which would refuse the next try
        raise


@app.command("tenant-erase")
def tenant_erase(tenant: TenantName) -> None:
    """Erase the personal data of a deleted tenant that is billed to its end.

    Its profile (organization, e-mail) and the references of its payment method go. Issued invoices
    stay as they are, with the name of the organization: the law wants them kept, in most countries
    for six to ten years, and their hash proves that nothing in them was changed. Ask the payment
    processor to delete its customer.

    The cluster is asked first whether what the tenant has left there is on legal hold.
    """
    from botplane.billing.records import store

    with told():
        _refuse_under_hold(tenant)
    erased = ask(lambda conn, now: store.erase_tenant(conn, order(tenant, now)))
    typer.echo("Erased." if erased else "There was nothing left to erase.")


def _refuse_under_hold(tenant: str) -> None:
    """Return if nothing of a tenant is on legal hold.

    Raises:
        Rejected: Its namespace is, or may not be read.
        Retryable: The API server does not answer.
    """
    from botplane.isolation.calls import open_api

    namespace = lb.tenant_namespace(tenant)
    kept = open_api().read(f"/api/v1/namespaces/{namespace}") or {"metadata": {}}
    why = kept["metadata"].get("annotations", {}).get(lb.LEGAL_HOLD)
    if why is not None:
        text = f"Namespace {namespace} is on legal hold ({why}): nothing is erased until that ends."
        raise Rejected("LegalHold", text)
