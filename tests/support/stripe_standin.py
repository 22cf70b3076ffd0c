"""A stand-in for Stripe's API: it keeps state, repeats answers by key, and fails when told to.

What it does is from Stripe's documentation: an idempotency key repeats the first answer for 24
hours and refuses other parameters; a search finds a payment only after a while; webhooks come more
than once and in any order.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

API_KEY = "sk_test_standin"
Answer = tuple[int, dict[str, Any]]


class StripeStandIn:
    """The state of one account.

    Attributes:
        faults: What happens to the next calls: `lost` (before anything is done), `timeout`
            (after it is done), `foreign` (after it is done; something else answers 200), a status
            such as `429`; `ok` is no fault.
        cards: Decline code by payment method; unknown ones pay.
        hidden: Payments that a search does not find yet.
        searches_late: A search finds what is cancelled from now on as it was before.
        events: Every webhook body, in the order of its event.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.cards: dict[str, str] = {}
        self.hidden: set[str] = set()
        self.hide_new = False
        self.searches_late = False
        self.found_as: dict[str, dict[str, Any]] = {}
        self.intents: dict[str, dict[str, Any]] = {}
        self.refunds: dict[str, dict[str, Any]] = {}
        self.refund_status = "succeeded"
        self.answers: dict[str, tuple[dict[str, str], Answer]] = {}
        self.events: list[bytes] = []
        self.url = ""
        self._lock = threading.Lock()

    @property
    def captured(self) -> list[int]:
        """The amounts of all payments that were made."""
        return [i["amount"] for i in self.intents.values() if i["status"] == "succeeded"]

    def authenticate(self, intent_id: str) -> None:
        """Let the card holder confirm a payment, unless it is cancelled."""
        if self.intents[intent_id]["status"] == "canceled":
            return
        self.intents[intent_id]["status"] = "succeeded"
        self._announce(self.intents[intent_id])

    def create(self, path: str, fields: dict[str, str], key: str) -> Answer:
        """Create a payment or a refund, or repeat what was answered to its key."""
        with self._lock:
            if key in self.answers:
                before, answer = self.answers[key]
                if before != fields:
                    return 400, {"error": {"type": "idempotency_error", "code": "key_reused"}}
                return answer
            answer = self._refund(fields) if path == "/v1/refunds" else self._pay(fields)
            self.answers[key] = (fields, answer)
            return answer

    def cancel(self, intent_id: str) -> Answer:
        """Cancel a payment; one that is over is an error that shows it."""
        intent = self.intents.get(intent_id)
        if intent is None:
            return 404, {"error": {"code": "resource_missing"}}
        if intent["status"] in {"succeeded", "canceled", "processing"}:
            error = {"code": "payment_intent_unexpected_state", "payment_intent": dict(intent)}
            return 400, {"error": error}
        before = dict(intent)
        intent["status"] = "canceled"
        if self.searches_late:
            self.found_as[intent_id] = before
        return 200, dict(intent)

    def _pay(self, fields: dict[str, str]) -> Answer:
        if fields["currency"] in {"kwd", "bhd"} and int(fields["amount"]) % 10:
            return 400, {"error": {"code": "invalid_amount"}}
        intent: dict[str, Any] = {
            "id": f"pi_{len(self.intents) + 1}",
            "amount": int(fields["amount"]),
            "currency": fields["currency"],
            "metadata": _metadata(fields),
            "status": "succeeded",
            "last_payment_error": None,
        }
        self.intents[intent["id"]] = intent
        if self.hide_new:
            self.hidden.add(intent["id"])
        decline = self.cards.get(fields["payment_method"])
        if decline == "requires_action":
            intent["status"] = decline
        elif decline is not None:
            error = {"type": "card_error", "code": "card_declined", "decline_code": decline}
            intent |= {"status": "requires_payment_method", "last_payment_error": error}
            self._announce(intent)
            return 402, {"error": error | {"payment_intent": intent}}
        self._announce(intent)
        return 200, dict(intent)

    def _refund(self, fields: dict[str, str]) -> Answer:
        intent = self.intents.get(fields["payment_intent"], {"status": "none", "amount": 0})
        back = sum(r["amount"] for r in self._refunds_of(fields["payment_intent"]))
        if intent["status"] != "succeeded" or back + int(fields["amount"]) > intent["amount"]:
            return 400, {"error": {"code": "charge_already_refunded"}}
        made: dict[str, Any] = {
            "id": f"re_{len(self.refunds) + 1}",
            "payment_intent": fields["payment_intent"],
            "amount": int(fields["amount"]),
            "metadata": _metadata(fields),
            "status": self.refund_status,
        }
        self.refunds[made["id"]] = made
        return 200, dict(made)

    def _refunds_of(self, payment_intent: str) -> list[dict[str, Any]]:
        return [r for r in self.refunds.values() if r["payment_intent"] == payment_intent]

    def list_refunds(self, payment_intent: str) -> Answer:
        """Return what was paid back of a payment."""
        return 200, {"data": [dict(made) for made in self._refunds_of(payment_intent)]}

    def search(self, query: str) -> Answer:
        """Return the payments with an invoice in their metadata."""
        match = re.fullmatch(r"metadata\['invoice_id'\]:'([-0-9a-f]{36})'", query)
        if match is None:
            return 400, {"error": {"code": "bad_query"}}
        found = [
            dict(self.found_as.get(intent["id"], intent))
            for intent in self.intents.values()
            if intent["metadata"]["invoice_id"] == match[1] and intent["id"] not in self.hidden
        ]
        return 200, {"data": found}

    def _announce(self, intent: dict[str, Any]) -> None:
        kind = "succeeded" if intent["status"] == "succeeded" else "payment_failed"
        event = {
            "id": f"evt_{len(self.events) + 1}",
            "object": "event",
            "type": f"payment_intent.{kind}",
            "data": {"object": dict(intent)},
        }
        self.events.append(json.dumps(event).encode())


def _metadata(fields: dict[str, str]) -> dict[str, str]:
    return {name[9:-1]: v for name, v in fields.items() if name.startswith("metadata[")}


class _Handler(BaseHTTPRequestHandler):
    standin: StripeStandIn

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        fields = dict(parse_qsl(self.rfile.read(length).decode()))
        key = self.headers["Idempotency-Key"]
        canceled = re.fullmatch(r"/v1/payment_intents/(\w+)/cancel", self.path)
        if canceled is not None:
            self._answer(lambda: self.standin.cancel(canceled[1]))
        else:
            self._answer(lambda: self.standin.create(self.path, fields, key))

    def do_GET(self) -> None:
        query = dict(parse_qsl(urlsplit(self.path).query))
        if self.path.startswith("/v1/refunds"):
            self._answer(lambda: self.standin.list_refunds(query["payment_intent"]))
        else:
            self._answer(lambda: self.standin.search(query["query"]))

    def _answer(self, act: Any) -> None:
        fault = self.standin.faults.pop(0) if self.standin.faults else "ok"
        if fault == "lost":
            self.close_connection = True
            return
        if fault.isdecimal():
            self._write(int(fault), {"error": {"type": "api_error"}})
            return
        if self.headers["Authorization"] != f"Bearer {API_KEY}":
            self._write(401, {"error": {"type": "invalid_request_error"}})
            return
        status, body = act()
        if fault == "timeout":
            self.close_connection = True
            return
        self._write(*((200, {"status": "ok"}) if fault == "foreign" else (status, body)))

    def _write(self, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def stripe_standin() -> Iterator[StripeStandIn]:
    """Serve a fresh account on a local port."""
    standin = StripeStandIn()
    handler = type("Handler", (_Handler,), {"standin": standin})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    standin.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield standin
    server.shutdown()
    server.server_close()
    thread.join()
