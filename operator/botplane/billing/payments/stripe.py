"""Payments by Stripe: one PaymentIntent per attempt, found again by its metadata.

Only the calls that collecting and paying back need, over the standard library. Amounts are minor
units, as Stripe takes them; in currencies of three decimals they end in 0.
"""

from __future__ import annotations

import http.client
import json
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from botplane.billing.payments.policy import (
    AttemptStatus,
    RefundResult,
    Result,
    Unanswered,
)
from botplane.billing.settlement import ChargeLimits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    from botplane.billing.payments.policy import Charge, Refund

API = "https://api.stripe.com"
API_VERSION = "2025-03-31.basil"
TIMEOUT_SECONDS = 30
SEARCHED = 100

CHARGE_LIMITS: Mapping[str, ChargeLimits] = MappingProxyType({
    **{c: ChargeLimits(minimum_minor=50) for c in ("AUD", "BRL", "CAD", "CHF", "EUR", "INR", "JPY",
                                                   "NZD", "SGD", "USD")},
    **{c: ChargeLimits(step_minor=10) for c in ("BHD", "KWD", "OMR", "TND")},
    "CZK": ChargeLimits(minimum_minor=1500),
    "DKK": ChargeLimits(minimum_minor=250),
    "GBP": ChargeLimits(minimum_minor=30),
    "HKD": ChargeLimits(minimum_minor=400),
    "MXN": ChargeLimits(minimum_minor=1000),
    "NOK": ChargeLimits(minimum_minor=300),
    "PLN": ChargeLimits(minimum_minor=200),
    "SEK": ChargeLimits(minimum_minor=300),
})  # fmt: skip
"""Minimum charges and three-decimal currencies of Stripe's page «Supported currencies»."""

_STATUS = {
    "succeeded": AttemptStatus.SUCCEEDED,
    "processing": AttemptStatus.PROCESSING,
    "requires_action": AttemptStatus.REQUIRES_ACTION,
    "requires_payment_method": AttemptStatus.FAILED,
    "canceled": AttemptStatus.FAILED,
}
_REFUND_STATUS = {
    "succeeded": AttemptStatus.SUCCEEDED,
    "failed": AttemptStatus.FAILED,
    "canceled": AttemptStatus.FAILED,
}
_REFUSED = (400, 402, 404)
"""Answers that are final for this attempt; every other error leaves its outcome open."""


@contextmanager
def _readable() -> Iterator[None]:
    """Take an answer that Stripe does not make, such as one of a proxy, for none."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise Unanswered(f"The answer is not of Stripe: {type(error).__name__}") from error


class StripeProcessor:
    """Collects with the secret key of a Stripe account."""

    name = "stripe"
    charge_limits = CHARGE_LIMITS

    def __init__(self, api_key: str, api: str = API, timeout: float = TIMEOUT_SECONDS) -> None:
        self._api_key = api_key
        self._api = urlsplit(api)
        self._timeout = timeout

    @_readable()
    def charge(self, charge: Charge) -> Result:
        """Collect from the stored card of a customer who is not present."""
        code, answer = self._call(
            "POST",
            "/v1/payment_intents",
            {
                "amount": charge.amount_minor,
                "currency": charge.currency.lower(),
                "customer": charge.customer_ref,
                "payment_method": charge.method_ref,
                "off_session": "true",
                "confirm": "true",
                "metadata[invoice_id]": charge.invoice_id,
                "metadata[tenant_id]": charge.tenant_id,
                "metadata[attempt]": charge.attempt_no,
            },
            charge.idempotency_key,
        )
        if code == http.HTTPStatus.OK:
            return _result(answer, charge.attempt_no)
        error = answer.get("error", {})
        if error.get("type") == "idempotency_error":
            # Another request was made with this key, with the payment method before this one.
            raise Unanswered("Stripe knows the attempt with another payment method.")
        return Result(
            attempt_no=charge.attempt_no,
            status=AttemptStatus.FAILED,
            processor_ref=error.get("payment_intent", {}).get("id"),
            decline_code=error.get("decline_code") or error.get("code") or "refused",
        )

    @_readable()
    def cancel(self, waiting: Result) -> Result:
        """Cancel a PaymentIntent; one that is over already says how it ended."""
        path = f"/v1/payment_intents/{quote(waiting.processor_ref or '', safe='')}/cancel"
        code, answer = self._call("POST", path, {})
        intent = answer if code == http.HTTPStatus.OK else answer["error"].get("payment_intent")
        if intent is None:
            raise Unanswered(f"Stripe refused to cancel with {code}.")
        return _result(intent, waiting.attempt_no)

    @_readable()
    def lookup(self, invoice_id: UUID) -> Sequence[Result]:
        """Search by metadata; a payment of the last minute may not be found yet.

        One that somebody made at Stripe itself is no attempt of ours.
        """
        query = {"query": f"metadata['invoice_id']:'{invoice_id}'", "limit": SEARCHED}
        code, answer = self._call("GET", "/v1/payment_intents/search", query)
        if code != http.HTTPStatus.OK:
            raise Unanswered(f"Stripe refused a search with {code}.")
        return [
            _result(intent, int(intent["metadata"]["attempt"]))
            for intent in answer["data"]
            if intent["metadata"].get("invoice_id") == str(invoice_id)
            and "attempt" in intent["metadata"]
        ]

    @_readable()
    def refund(self, refund: Refund) -> RefundResult:
        """Pay back to the card that paid."""
        code, answer = self._call(
            "POST",
            "/v1/refunds",
            {
                "payment_intent": refund.payment_ref,
                "amount": refund.amount_minor,
                "metadata[invoice_id]": refund.invoice_id,
                "metadata[tenant_id]": refund.tenant_id,
                "metadata[reference]": refund.reference,
            },
            refund.idempotency_key,
        )
        if code == http.HTTPStatus.OK:
            return _refund_result(answer)
        return RefundResult(
            reference=refund.reference,
            status=AttemptStatus.FAILED,
            processor_ref=None,
            decline_code=answer.get("error", {}).get("code") or "refused",
        )

    @_readable()
    def refunds(self, payment_ref: str) -> Sequence[RefundResult]:
        """List what was paid back; unlike a search, a list knows it at once."""
        query = {"payment_intent": payment_ref, "limit": SEARCHED}
        code, answer = self._call("GET", "/v1/refunds", query)
        if code != http.HTTPStatus.OK:
            raise Unanswered(f"Stripe refused a list of refunds with {code}.")
        return [_refund_result(refund) for refund in answer["data"]]

    def _call(
        self, method: str, path: str, fields: Mapping[str, Any], key: str | None = None
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self._api_key}", "Stripe-Version": API_VERSION}
        encoded = urlencode(fields)
        if method == "GET":
            path, encoded = f"{path}?{encoded}", ""
        else:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        if key is not None:
            headers["Idempotency-Key"] = key
        connection = self._connection()
        try:
            connection.request(method, path, encoded, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unanswered(f"Stripe did not answer: {type(error).__name__}") from error
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK and response.status not in _REFUSED:
            raise Unanswered(f"Stripe answered {response.status}.")
        return response.status, answer

    def _connection(self) -> http.client.HTTPConnection:
        if self._api.scheme == "https":
            return http.client.HTTPSConnection(self._api.netloc, timeout=self._timeout)
        return http.client.HTTPConnection(self._api.netloc, timeout=self._timeout)


def _result(intent: Mapping[str, Any], attempt_no: int) -> Result:
    error = intent.get("last_payment_error") or {}
    status = _STATUS.get(intent["status"], AttemptStatus.PROCESSING)
    failed = status is AttemptStatus.FAILED
    code = error.get("decline_code") or error.get("code") or intent["status"]
    return Result(
        attempt_no=attempt_no,
        status=status,
        processor_ref=intent["id"],
        decline_code=code if failed else None,
    )


def _refund_result(refund: Mapping[str, Any]) -> RefundResult:
    """Read a refund; one that somebody made at Stripe itself goes by its id there."""
    status = _REFUND_STATUS.get(refund["status"], AttemptStatus.PROCESSING)
    failed = status is AttemptStatus.FAILED
    return RefundResult(
        reference=refund["metadata"].get("reference") or refund["id"],
        status=status,
        processor_ref=refund["id"],
        decline_code=refund.get("failure_reason") or refund["status"] if failed else None,
    )
