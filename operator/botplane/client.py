"""Report usage from a bot: on its disk first, then at botplane, each event once.

Standard library only, and nothing else of botplane: a bot may copy this one file.

    client = UsageClient("http://botplane-web.botplane-system.svc:8090", key, Path("/data/usage"))
    client.record("ai_units", "12.5", {"model": "large"})
    client.close()
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import re
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from http import HTTPStatus
from http.client import HTTPException
from io import FileIO
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

BATCH_EVENTS: Final = 500
BATCH_BYTES: Final = 512 << 10
TIMEOUT_SECONDS: Final = 30.0
_CONTENT_TYPE: Final = "application/cloudevents-batch+json"
_TOO_MUCH_OR_WRONG: Final = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
_NO_ANSWER: Final = (
    OSError,
    HTTPException,
    ValueError,
    LookupError,
    TypeError,
    RecursionError,
)
_VERDICTS: Final = frozenset({"accepted", "duplicate", "conflict", "rejected"})
_SUFFIX: Final = ".events"
_NAMES: Final = "[0-9]" * 16 + _SUFFIX
FILE_BYTES: Final = 1 << 20
"""After which another file is begun: one file at a time is in memory when it is sent."""
_REJECTED: Final = "rejected.jsonl"
REJECTED_BYTES: Final = 16 << 20
_SAID_BYTES: Final = 300
_AMOUNT: Final = re.compile(r"(0|[1-9][0-9]{0,17})(\.[0-9]{1,12})?")


class SpoolError(Exception):
    """The event was not taken: the disk is full, or another process uses the folder."""


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """What seldom differs from bot to bot.

    Attributes:
        source: Who reports, unique within the bot.
        linger_seconds: How long events wait for others to be sent with.
        longest_backoff_seconds: Between two tries while botplane does not answer.
        spool_bytes: Most bytes on disk; then `record` refuses.
        clock: Current time, UTC.
    """

    source: str = "bot"
    linger_seconds: float = 1.0
    longest_backoff_seconds: float = 60.0
    spool_bytes: int = 256 << 20
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)  # noqa: TID251 - the bot's own clock


@dataclass(frozen=True, kw_only=True)
class ClosedTrade:
    """One trade as the exchange closed it; amounts are in the major unit of `currency`."""

    trade_id: str
    pnl: Decimal
    volume: Decimal
    currency: str
    closed_at: datetime


class Spool:
    """Events on disk, in numbered files: the last one grows, the others wait to be sent.

    An event is here when `append` returns, and stays until its file is removed.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._mutex = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = (folder / "lock").open("a")
        except OSError as error:
            raise SpoolError(f"give a folder that can be written to: {error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            is_used = isinstance(error, BlockingIOError)
            why = "another process uses it" if is_used else f"it cannot be locked: {error}"
            raise SpoolError(f"give {folder} to one process: {why}") from error
        self._number = max((int(path.stem) for path in self._files()), default=0)
        self._file: FileIO | None = None
        self._bytes = sum(path.stat().st_size for path in self._files())

    def append(self, line: bytes) -> None:
        """Keep one line; it is on disk when this returns, and not at all when it raises.

        Raises:
            SpoolError: There is no room, or the spool was closed.
        """
        with self._mutex:
            if self._lock.closed:
                raise SpoolError("the spool was closed: another process may use it by now")
            if self._bytes + len(line) + 1 > self._most_bytes:
                raise SpoolError(f"the spool holds {self._bytes} bytes already")
            try:
                self._write(line + b"\n")
            except OSError as error:
                raise SpoolError(f"the event was not written: {error}") from error
            self._bytes += len(line) + 1
            if self._file is not None and self._file.tell() >= FILE_BYTES:
                self._seal()

    def oldest(self) -> tuple[Path, list[bytes]] | None:
        """Return the oldest file and its lines; it gets no more of them."""
        with self._mutex:
            paths = self._files()
            if not paths:
                return None
            if self._file is not None and paths[0].name == Path(str(self._file.name)).name:
                self._seal()
        # A last line without its end was never acknowledged by `append`.
        return paths[0], paths[0].read_bytes().split(b"\n")[:-1]

    def remove(self, path: Path) -> None:
        """Forget a file whose events have their verdicts."""
        with self._mutex:
            size = path.stat().st_size
            path.unlink()
            self._bytes -= size

    def reject(self, line: bytes, why: str) -> None:
        """Keep an event that botplane will never take, for people to read.

        In the log where the disk has no room, or so many are kept that they say nothing new.
        """
        event = line.decode(errors="backslashreplace")
        try:
            with (self._folder / _REJECTED).open("ab") as file:
                if file.tell() < REJECTED_BYTES:
                    file.write(json.dumps({"why": why, "event": event}).encode() + b"\n")
                    return
        except OSError as error:
            why = f"{why}; {error}"
        log.error("Usage was refused and is kept nowhere: %s: %s", why, event)

    def is_empty(self) -> bool:
        """Say whether every event was sent."""
        with self._mutex:
            return not self._files()

    def close(self) -> None:
        """Let another process use the folder."""
        with self._mutex:
            self._seal()
            self._lock.close()

    def _write(self, line: bytes) -> None:
        """Write all of a line and see it on disk, or take back what was written of it."""
        file = self._file or self._next_file()
        path = Path(str(file.name))
        size, rest = os.fstat(file.fileno()).st_size, memoryview(line)
        try:
            while rest:
                rest = rest[file.write(rest) or 0 :]
            os.fsync(file.fileno())
        except OSError:
            # Should half a line stay nevertheless: the next event starts another file.
            self._seal()
            with suppress(OSError):
                if size:
                    os.truncate(path, size)
                else:
                    path.unlink()
            raise

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(_NAMES))

    def _next_file(self) -> FileIO:
        self._number += 1
        self._file = FileIO(self._folder / f"{self._number:016}{_SUFFIX}", "a")
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return self._file

    def _seal(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class UsageClient:
    """Takes events at the speed of the disk and sends them from a thread of its own."""

    def __init__(
        self, url: str, key: str, spool: Path, options: ClientOptions | None = None
    ) -> None:
        """Open the spool and go on sending what an earlier process left in it.

        Args:
            url: Address of botplane's web process.
            key: The usage key, `key_id.secret`.
            spool: A folder on a volume that outlives the pod.
            options: What seldom differs.

        Raises:
            SpoolError: Another process uses the folder.
        """
        self._url = f"{url.rstrip('/')}/v1/events"
        self._key = key.strip()
        self._options = options or ClientOptions()
        self._spool = Spool(spool, self._options.spool_bytes)
        self._stop = threading.Event()
        self._arrived = threading.Event()
        self._arrived.set()
        self._sender = threading.Thread(target=self._send_all, name="usage", daemon=True)
        self._sender.start()

    def record(
        self,
        meter: str,
        value: Decimal | int | str,
        dims: Mapping[str, str] | None = None,
        event_id: str | None = None,
    ) -> str:
        """Keep one event and return its id; it survives the process from now on.

        Args:
            meter: Such as `ai_units`.
            value: How much, exactly: a float is refused.
            dims: What else is known, such as the model.
            event_id: What makes the event unique; default: a new id.

        Raises:
            SpoolError: There is no room on disk.
            TypeError: The value is a float, or no number.
            ValueError: botplane would refuse the value.
        """
        text = _exact(value)
        if not _AMOUNT.fullmatch(text):
            raise ValueError(
                f"a quantity is 0 or more, with 18 digits and 12 decimals at most, not {text}"
            )
        chosen = event_id or uuid.uuid4().hex
        return self._keep(meter, chosen, self._options.clock(), (text, dict(dims or {})))

    def trade(self, trade: ClosedTrade) -> str:
        """Keep a closed trade; told twice it counts once.

        Raises:
            SpoolError: There is no room on disk.
            TypeError: An amount is a float, or no number.
            ValueError: The time has no zone.
        """
        if trade.closed_at.tzinfo is None:
            raise ValueError(f"give closed_at of trade {trade.trade_id} its zone, such as UTC")
        dims = {
            "trade_id": trade.trade_id,
            "pnl": _exact(trade.pnl),
            "volume": _exact(trade.volume),
            "currency": trade.currency,
        }
        return self._keep("trades", f"trade/{trade.trade_id}", trade.closed_at, ("1", dims))

    def flush(self, seconds: float) -> bool:
        """Wait until everything is sent; return whether it is."""
        until = time.monotonic() + seconds
        while not self._spool.is_empty():
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def close(self, seconds: float = 5.0) -> bool:
        """Send what is left, and return whether it is all sent; the rest stays on disk."""
        is_sent = self.flush(seconds)
        self._stop.set()
        self._arrived.set()
        self._sender.join(TIMEOUT_SECONDS)
        self._spool.close()
        return is_sent

    def _keep(
        self, meter: str, event_id: str, at: datetime, data: tuple[str, dict[str, str]]
    ) -> str:
        event = {
            "specversion": "1.0",
            "id": event_id,
            "source": self._options.source,
            "type": meter,
            "time": at.isoformat(),
            "data": {"value": data[0], "dims": data[1]},
        }
        self._spool.append(json.dumps(event, separators=(",", ":")).encode())
        self._arrived.set()
        return event_id

    def _send_all(self) -> None:
        while not self._stop.is_set():
            self._arrived.wait()
            self._stop.wait(self._options.linger_seconds)
            self._arrived.clear()
            try:
                self._send_spooled()
            except OSError as error:
                log.warning("Usage waits on a disk that cannot be read or emptied: %s", error)
                self._stop.wait(self._options.longest_backoff_seconds)
                self._arrived.set()

    def _send_spooled(self) -> None:
        while not self._stop.is_set() and (found := self._spool.oldest()) is not None:
            path, lines = found
            if not all(self._send(batch) for batch in _batches(lines)):
                return
            self._spool.remove(path)

    def _send(self, lines: Sequence[bytes]) -> bool:
        """Send until there is an answer; return False when the client is closed before."""
        failures = 0
        while not self._stop.is_set():
            answer = self._post(lines)
            if answer.status == HTTPStatus.OK:
                self._note_rejected(lines, answer.results)
                return True
            if answer.status in _TOO_MUCH_OR_WRONG:
                if len(lines) == 1:
                    self._spool.reject(lines[0], f"HTTP {answer.status}")
                    return True
                middle = len(lines) // 2
                return self._send(lines[:middle]) and self._send(lines[middle:])
            failures += 1
            longest = self._options.longest_backoff_seconds
            backoff = min(longest, 0.2 * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)
            text = "Usage was not sent: status %s, try %s: %s"
            log.warning(text, answer.status, failures, answer.said)
            self._stop.wait(min(longest, max(answer.wait, backoff)))
        return False

    def _post(self, lines: Sequence[bytes]) -> _Answer:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": _CONTENT_TYPE}
        request = urllib.request.Request(  # noqa: S310 - the address is configuration
            self._url, b"[" + b",".join(lines) + b"]", headers
        )
        try:
            with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as answer:
                results = _verdicts(json.load(answer), len(lines))
                return _Answer(status=answer.status, results=results)
        except urllib.error.HTTPError as error:
            after, said = error.headers.get("Retry-After", ""), b""
            with error, suppress(OSError, HTTPException):
                said = error.read(_SAID_BYTES)
            wait = float(after) if after.isdecimal() else 0.0
            return _Answer(status=error.code, wait=wait, said=said.decode(errors="replace"))
        except _NO_ANSWER as error:
            return _Answer(said=f"{type(error).__name__}: {error}"[:_SAID_BYTES])

    def _note_rejected(self, lines: Sequence[bytes], results: Sequence[Mapping[str, Any]]) -> None:
        for line, result in zip(lines, results, strict=True):
            if result["status"] in {"rejected", "conflict"}:
                log.error("Usage was refused: %s", result.get("message", result["status"]))
                self._spool.reject(line, str(result.get("code", result["status"])))


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Sends the key to nobody whom an answer names."""

    def redirect_request(self, *_told: Any) -> None:
        """Take a redirection for an error."""


_OPENER: Final = urllib.request.build_opener(_NoRedirection)


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What came back; status 0 is no answer, or none of botplane.

    Attributes:
        results: A verdict on each event, where the status is 200.
        wait: Seconds before the next try, as the server asks.
        said: What was wrong, for people.
    """

    status: int = 0
    results: Sequence[Mapping[str, Any]] = field(default=())
    wait: float = 0.0
    said: str = ""


def _verdicts(answer: Any, count: int) -> Sequence[Mapping[str, Any]]:
    """Return the verdicts on so many events.

    Raises:
        ValueError: Not every event has one.
        LookupError, TypeError: It is the answer of somebody else.
    """
    results: list[Mapping[str, Any]] = answer["results"]
    if len(results) != count or not all(result["status"] in _VERDICTS for result in results):
        raise ValueError("not every event has a verdict")
    return results


def _exact(value: Any) -> str:
    if isinstance(value, bool | float) or not isinstance(value, Decimal | int | str):
        raise TypeError(f"an amount is a Decimal, an int or a text, not {value!r}")
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _batches(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and (len(batch) == BATCH_EVENTS or size + len(line) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line) + 1
    if batch:
        yield batch
