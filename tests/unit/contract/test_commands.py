"""What the processes load, and that help needs nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from botplane.cli import app

LOADED = """
import sys
{statement}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def run(*arguments: str) -> str:
    hidden = {"DATABASE_URL", "KUBECONFIG"}
    environment = {k: v for k, v in os.environ.items() if k not in hidden and "BOTPLANE" not in k}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


HELP = """
from typer.testing import CliRunner
from botplane.cli import app
for words in ([], ["operator"], ["metering"], ["migrate"], ["invoice"], ["usage"], ["billing"]):
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage:" in result.output
"""


RECORD = """
from typer.testing import CliRunner
from botplane.cli import app
result = CliRunner().invoke(app, ["isolation-check", "--record"])
assert result.exit_code == 2, result.output
assert "--probe-image" in result.output
"""


INVOICE = """
from typer.testing import CliRunner
from botplane.cli import app
result = CliRunner().invoke(app, ["invoice", "acme"], env={"DATABASE_URL": "host=/nowhere"})
assert result.exit_code == 1, result.output
"""


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        (INVOICE, {"kopf", "kubernetes", "aiohttp"}),
        ("import botplane.wiring", {"kubernetes", "pykube", "typer"}),
        ("import botplane.metering.reconcile", {"kopf", "aiohttp", "jinja2"}),
        (RECORD, {"kopf", "psycopg", "aiohttp"}),
        (HELP, {"kopf", "kubernetes", "psycopg", "aiohttp"}),
    ],
    ids=[
        "botplane invoice",
        "operator",
        "metering",
        "a record needs a probe",
        "help needs no database",
    ],
)
def test_a_process_starts_and_loads_only_what_it_needs(statement: str, absent: set[str]) -> None:
    loaded = set(run("-c", LOADED.format(statement=statement)).split())

    assert "botplane" in loaded
    assert loaded & absent == set()


@pytest.mark.parametrize("more", [["--period", "2026-10"], ["--output", "json"]])
def test_live_usage_refuses_what_it_does_not_show(more: list[str]) -> None:
    result = CliRunner().invoke(app, ["usage", "acme", "--watch", *more])

    assert result.exit_code == 2
    assert "--watch" in result.output
