"""The script of backup jobs, run as they run it: what is kept, and what a job that died leaves."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from botplane.api.bot_deployment import Backup
from botplane.api.plan import BotLimits
from botplane.bots.backup import SCRIPT, backup_values


def backed_up(place: Path, keep: int) -> list[str]:
    """Run the script with volumes below a folder and return the names of the backups."""
    script = SCRIPT.replace("/backup", f"{place}/backup").replace("/data", f"{place}/data")
    subprocess.run(["/bin/sh", "-ec", script], check=True, env=os.environ | {"KEEP": str(keep)})
    return sorted(path.name for path in (place / "backup").iterdir())


def volumes(place: Path, *backups: str) -> Path:
    """Make the volumes, with backups of which the first is the oldest."""
    (place / "data").mkdir()
    (place / "data" / "orders.db").write_text("1")
    (place / "backup").mkdir()
    for age, name in enumerate(reversed(backups), start=1):
        (place / "backup" / name).write_text("")
        os.utime(place / "backup" / name, (1_700_000_000 - age, 1_700_000_000 - age))
    return place


def test_a_backup_holds_the_volume_and_as_many_stay_as_are_wanted(tmp_path: Path) -> None:
    place = volumes(tmp_path, "1.tar.gz", "2.tar.gz", "3.tar.gz")

    left = backed_up(place, keep=3)

    (new,) = set(left) - {"2.tar.gz", "3.tar.gz"}
    assert len(left) == 3
    with tarfile.open(place / "backup" / new) as archive:
        assert "./orders.db" in archive.getnames()


def test_what_a_job_left_that_died_does_not_fill_the_volume(tmp_path: Path) -> None:
    place = volumes(tmp_path, "1.tar.gz", "20261001T030000Z.tar.gz.part")

    left = backed_up(place, keep=3)

    assert len(left) == 2
    assert not [name for name in left if name.endswith(".part")]


@pytest.mark.parametrize(
    ("most", "limits"),
    [
        ({"maxCPU": "4", "maxMemory": "8Gi"}, ("500m", "256Mi")),
        ({"maxCPU": "0.2", "maxMemory": "128Mi"}, ("200m", "128Mi")),
    ],
)
def test_a_backup_is_no_larger_than_the_plan_lets_a_container_be(
    most: dict[str, str], limits: tuple[str, str]
) -> None:
    bot = BotLimits.model_validate(most)

    values = backup_values(Backup(schedule="0 3 * * *"), "bot", "busybox", bot, suspended=False)

    assert (values["resources"]["limits"]["cpu"], values["resources"]["limits"]["memory"]) == limits
