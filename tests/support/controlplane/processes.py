"""Start programs, remember them in a state folder, and end them with all their children.

Each program has one record in `<state>/pids`: process id, start time and command line. The
start time keeps a recycled process id from being killed. Nothing here knows Kubernetes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

# The kernel's boot time, from which start times are derived, moves with clock corrections.
START_TIME_TOLERANCE = 2.0

# Marks the environment of every program with its state folder; see `end_strays`.
OWNER = "BOTPLANE_PROGRAM_OF"


class ProgramFailedError(Exception):
    """A program ended although it should run; the message holds the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """What to run: `name` is its log file, its record and its word in `status`."""

    name: str
    argv: tuple[str, ...]
    user: int | None = None
    group: int | None = None
    stop_signal: int = signal.SIGTERM
    environment: dict[str, str] = field(default_factory=dict)
    """Variables beside those of the starter."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A program that was started, and the process it became."""

    program: Program
    pid: int
    started: float


# The starter must reap its own children, or an ended one stays visible as a zombie.
_children: dict[int, subprocess.Popen[bytes]] = {}


def start(program: Program, state: Path) -> None:
    """Start a program detached from the terminal; do nothing if it runs already."""
    if is_running(state, program.name):
        return
    log = log_file(state, program.name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            program.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env=owned_environment(state) | program.environment,
            user=program.user,
            group=program.group,
            extra_groups=None if program.group is None else [],
        )
    _children[child.pid] = child
    _write_record(state, program, child.pid)


def owned_environment(state: Path) -> dict[str, str]:
    """Return the environment of whatever must end with a state folder."""
    return {**os.environ, OWNER: str(state)}


def restart(state: Path, name: str) -> None:
    """Start a program again as it was started before."""
    start(record(state, name).program, state)


def record(state: Path, name: str) -> Record:
    """Read what is known about a program that was started."""
    raw = json.loads(_record_file(state, name).read_text())
    argv = tuple(raw["program"].pop("argv"))
    return Record(
        program=Program(argv=argv, **raw["program"]), pid=raw["pid"], started=raw["started"]
    )


def names(state: Path) -> tuple[str, ...]:
    """List the programs that have a record, whether they live or not."""
    return tuple(sorted(path.stem for path in (state / "pids").glob("*.json")))


def find(state: Path, name: str) -> psutil.Process | None:
    """Return the living process of a program, or None."""
    try:
        known = record(state, name)
    except FileNotFoundError:
        return None
    return _living(known)


def is_running(state: Path, name: str) -> bool:
    """Tell whether a program lives."""
    return find(state, name) is not None


def must_run(state: Path, *programs: str) -> None:
    """Check that programs live.

    Raises:
        ProgramFailedError: One of them has ended.
    """
    for name in programs:
        if not is_running(state, name):
            raise ProgramFailedError(f"{name} has ended:\n{log_tail(state, name)}")


def kill9(state: Path, name: str) -> None:
    """Kill a program and its children without warning; its record stays, for `restart`."""
    if process := find(state, name):
        family = _family(process)
        for member in family:
            _send(member, signal.SIGKILL)
        _gone(family, within=10)


def stop(state: Path, programs: Sequence[str], *, within: float) -> None:
    """End programs together and forget them: ask, wait `within` seconds, then kill."""
    found = [(known, process) for known in _records(state, programs) if (process := _living(known))]
    families = [member for _, process in found for member in _family(process)]
    for known, process in found:
        _send(process, known.program.stop_signal)
    for survivor in _gone(families, within=within):
        _send(survivor, signal.SIGKILL)
    if left := _gone(families, within=10):
        raise ProgramFailedError(f"cannot be killed: {left}")
    for name in programs:
        _record_file(state, name).unlink(missing_ok=True)
        _set_log_aside(state, name)


def end_strays(state: Path) -> None:
    """Kill what was started for this state folder but was not yet recorded.

    The window between a start and its record is open when a starter is killed in it.
    """
    strays = [member for stray in _strays(state) for member in _family(stray)]
    for member in strays:
        _send(member, signal.SIGKILL)
    _gone(strays, within=10)


def log_file(state: Path, name: str) -> Path:
    """Return where a program's output goes."""
    return state / "logs" / f"{name}.log"


def log_tail(state: Path, name: str, lines: int = 15) -> str:
    """Return the last lines of a program's output."""
    try:
        return "\n".join(log_file(state, name).read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no output)"


def _set_log_aside(state: Path, name: str) -> None:
    """Keep the log of the last run, and begin the next one with an empty file."""
    log = log_file(state, name)
    if log.exists():
        log.replace(log.with_suffix(".previous.log"))


def _write_record(state: Path, program: Program, pid: int) -> None:
    try:
        started = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        started = time.time()
    path = _record_file(state, program.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(Record(program=program, pid=pid, started=started))))
    draft.rename(path)


def _record_file(state: Path, name: str) -> Path:
    return state / "pids" / f"{name}.json"


def _records(state: Path, programs: Iterable[str]) -> list[Record]:
    return [record(state, name) for name in programs if _record_file(state, name).exists()]


def _living(known: Record) -> psutil.Process | None:
    if child := _children.get(known.pid):
        child.poll()
    try:
        process = psutil.Process(known.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        age_differs = abs(process.create_time() - known.started) > START_TIME_TOLERANCE
    except psutil.NoSuchProcess:
        return None
    return None if age_differs else process


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [process]


def _strays(state: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _owner(process) == str(state)]


def _owner(process: psutil.Process) -> str | None:
    try:
        environment: dict[str, str] = process.environ()
    except (psutil.Error, OSError):
        return None
    return environment.get(OWNER)


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _gone(processes: list[psutil.Process], *, within: float) -> list[psutil.Process]:
    """Wait for processes to end and return those that did not."""
    deadline = time.monotonic() + within
    while True:
        alive = [process for process in processes if _is_alive(process)]
        if not alive or time.monotonic() >= deadline:
            return alive
        time.sleep(0.02)


def _is_alive(process: psutil.Process) -> bool:
    child = _children.get(process.pid)
    if child is not None and child.returncode is None:
        # It stays behind until it is waited for, which nobody can while a thread of it still ends.
        return child.poll() is None
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
