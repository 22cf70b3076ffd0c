"""The few requests to the API server that are needed before any client can be used."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.controlplane.waiting import until

CONFLICT = 409


@dataclass(frozen=True, kw_only=True)
class Api:
    """An API server and the token to speak to it with."""

    server: str
    ca: Path
    token: str

    def get(self, path: str) -> Any:
        """Return the parsed answer to a GET, or None if the server refuses or is away."""
        try:
            return json.loads(self._send("GET", path))
        except urllib.error.HTTPError as refused:
            # It holds the connection until it is closed.
            refused.close()
        except (OSError, ValueError):
            pass
        return None

    def create(self, path: str, body: dict[str, Any]) -> None:
        """Create an object; one that exists already is left as it is.

        Where its quota is counted at that moment the API server refuses it and asks to try again.
        """
        until(lambda: self._is_created(path, body), what=f"create in {path}")

    def patch(self, path: str, body: dict[str, Any]) -> None:
        """Change an object by a JSON merge patch."""
        self._send("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str) -> None:
        """Delete an object."""
        self._send("DELETE", path)

    def is_ready(self) -> bool:
        """Tell whether the API server says it is ready."""
        try:
            return self._send("GET", "/readyz") == b"ok"
        except (OSError, ValueError):
            return False

    def _is_created(self, path: str, body: dict[str, Any]) -> bool:
        try:
            self._send("POST", path, body)
        except urllib.error.HTTPError as error:
            if error.code != CONFLICT:
                raise
            with error:
                return bool(json.load(error)["reason"] == "AlreadyExists")
        return True

    def _send(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        media_type: str = "application/json",
    ) -> bytes:
        request = urllib.request.Request(
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Content-Type": media_type},
        )
        context = ssl.create_default_context(cafile=str(self.ca))
        # A proxy of the environment is not for our own machine.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=10) as answer:
            content: bytes = answer.read()
        return content
