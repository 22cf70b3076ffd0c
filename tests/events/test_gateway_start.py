"""A gateway that cannot serve says why in a sentence, and ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from tests.events.server import BOTPLANE
from tests.support.controlplane.ports import free_ports


def _said(database_url: str, endpoints: Path, **more: str) -> tuple[int, str]:
    """Return exit code and words of a gateway that ends by itself."""
    port, health_port = free_ports(2)
    environment = {
        "DATABASE_URL": database_url,
        "BOTPLANE_RPC_ENDPOINTS": str(endpoints),
        "BOTPLANE_GATEWAY_PORT": str(port),
        "BOTPLANE_GATEWAY_HEALTH_PORT": str(health_port),
    }
    ended = subprocess.run(
        [BOTPLANE, "gateway"],
        env=os.environ | environment | more,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.fixture
def endpoints(tmp_path: Path) -> Path:
    path = tmp_path / "rpc-endpoints.json"
    path.write_text(json.dumps({"solana-mainnet": "http://127.0.0.1:1/key"}))
    return path


@pytest.mark.parametrize("name", ["BOTPLANE_GATEWAY_PORT", "BOTPLANE_GATEWAY_HEALTH_PORT"])
def test_a_port_that_is_taken_is_named(migrated: str, endpoints: Path, name: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = str(other.getsockname()[1])
        code, told = _said(migrated, endpoints, **{name: port})

    assert code == 1
    assert f"SettingInvalid: {name} {port} cannot be served:" in told
    assert "ddress already in use" in told
    assert "Traceback" not in told


def test_a_missing_file_of_providers_is_named(migrated: str, tmp_path: Path) -> None:
    code, told = _said(migrated, tmp_path / "none.json")

    assert code == 1
    assert "none.json: No such file or directory." in told
    assert "Traceback" not in told


def test_a_user_without_the_role_of_the_gateway_is_told_so(migrated: str, endpoints: Path) -> None:
    parts = urlsplit(migrated)
    with psycopg.connect(migrated, autocommit=True) as conn:
        conn.execute("CREATE ROLE stranger LOGIN")
        try:
            netloc = f"stranger@{parts.hostname}:{parts.port}"
            code, told = _said(urlunsplit(parts._replace(netloc=netloc)), endpoints)
        finally:
            conn.execute("DROP ROLE stranger")

    assert code == 1
    assert "SettingInvalid: Postgres refuses the gateway: permission denied" in told
    assert "give the user of DATABASE_URL the role botplane_gateway" in told
    assert "Traceback" not in told


def test_a_database_without_our_tables_is_told_so(database: str, endpoints: Path) -> None:
    code, told = _said(database, endpoints)

    assert code == 1
    assert "does not exist. Run `botplane migrate`" in told
    assert "Traceback" not in told
