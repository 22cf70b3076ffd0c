"""Backups of a bot's volume: a scheduled job that keeps the newest archives. Pure."""

from __future__ import annotations

from typing import Any, Final

from botplane.api import backup as takes
from botplane.api.bot_deployment import Backup, Storage
from botplane.api.plan import BotLimits

# A kubelet replaces $(NAME) in a command; backticks are the shell's alone.
# What a job left that was killed in its midst goes first: nobody else runs beside this one.
SCRIPT: Final = """\
rm -f /backup/*.part
file=/backup/`date -u +%Y%m%dT%H%M%SZ`.tar.gz
tar -czf "$file.part" -C /data .
mv "$file.part" "$file"
ls -1t /backup/*.tar.gz | tail -n +`expr "$KEEP" + 1` | while read -r old; do rm -- "$old"; done
"""


def backup_name(bot: str) -> str:
    """Return the name of the backup's objects: a bot's own name has no dot."""
    return f"{bot}.backup"


def backup_values(
    backup: Backup, bot: str, image: str, most: BotLimits, *, suspended: bool
) -> dict[str, Any]:
    """Return what the CronJob template needs beside names and labels.

    What no bot of the namespace may exceed, the container of a backup may not either.
    """
    cpu = takes.CPU_LIMIT.at_most(most.max_cpu)
    memory = takes.MEMORY_LIMIT.at_most(most.max_memory)
    return {
        "account": bot,
        "schedule": backup.schedule,
        "suspend": suspended,
        "image": image,
        "command": ["/bin/sh", "-ec", SCRIPT],
        "environment": [{"name": "KEEP", "value": str(backup.retention)}],
        "resources": {
            "requests": {
                "cpu": takes.CPU.at_most(cpu).canonical,
                "memory": takes.MEMORY.at_most(memory).canonical,
                "ephemeral-storage": "64Mi",
            },
            "limits": {
                "cpu": cpu.canonical,
                "memory": memory.canonical,
                "ephemeral-storage": "1Gi",
            },
        },
        "volume_mounts": [
            {"name": "data", "mountPath": "/data", "readOnly": True},
            {"name": "backup", "mountPath": "/backup"},
        ],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": bot, "readOnly": True}},
            {"name": "backup", "persistentVolumeClaim": {"claimName": backup_name(bot)}},
        ],
    }


def volume_size(storage: Storage) -> str:
    """Return the size of the backup volume, as the API server stores it."""
    return storage.size.times(takes.SIZE_FACTOR)
