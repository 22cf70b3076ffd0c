"""When a payment is tried, awaited and given up; and which webhooks are believed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from botplane.billing.payments.policy import Attempt, AttemptStatus, Step, Unpaid, next_step
from botplane.billing.payments.webhooks import invoice_of, read_body, signature, verify_signature
from botplane.errors import Rejected
from tests.support.billing import at

ISSUED = at("2026-11-01T06:00:00Z")
DAY = timedelta(days=1)
FAILED, UNKNOWN = AttemptStatus.FAILED, AttemptStatus.UNKNOWN
NOT_ENOUGH = "insufficient_funds"


def an_attempt(day: int, status: AttemptStatus = FAILED, code: str | None = NOT_ENOUGH) -> Attempt:
    moment = ISSUED + day * DAY
    return Attempt(
        attempt_no=day + 1, status=status, decline_code=code, created_at=moment, changed_at=moment
    )


def step(
    *attempts: Attempt, day: float, method_day: float | None = -1, given_up: bool = False
) -> Step:
    unpaid = Unpaid(
        issued_at=ISSUED,
        is_given_up=given_up,
        attempts=attempts,
        method_since=None if method_day is None else ISSUED + method_day * DAY,
    )
    return next_step(unpaid, ISSUED + day * DAY)


FIRST, SECOND, THIRD, FOURTH = an_attempt(0), an_attempt(3), an_attempt(8), an_attempt(15)


@pytest.mark.parametrize(
    ("attempts", "day", "expected"),
    [
        ((), 0, Step.CHARGE),
        ((FIRST,), 2.9, Step.WAIT),
        ((FIRST,), 3, Step.CHARGE),
        ((FIRST, SECOND), 7.9, Step.WAIT),
        ((FIRST, SECOND), 8, Step.CHARGE),
        ((FIRST, SECOND, THIRD), 14.9, Step.WAIT),
        ((FIRST, SECOND, THIRD), 15, Step.CHARGE),
        ((FIRST, SECOND, THIRD, FOURTH), 15, Step.GIVE_UP),
        ((an_attempt(0, code="stolen_card"),), 3, Step.WAIT),
        ((an_attempt(0, code="stolen_card"),), 15, Step.GIVE_UP),
        ((an_attempt(0, UNKNOWN, None),), 20, Step.LOOK_UP),
        ((an_attempt(0, AttemptStatus.CREATED, None),), 0, Step.LOOK_UP),
        ((an_attempt(0, AttemptStatus.REQUIRES_ACTION, None),), 14, Step.LOOK_UP),
        ((an_attempt(0, AttemptStatus.REQUIRES_ACTION, None),), 15, Step.GIVE_UP),
    ],
)
def test_attempts_follow_the_schedule(
    attempts: tuple[Attempt, ...], day: float, expected: Step
) -> None:
    assert step(*attempts, day=day) is expected


def test_without_a_payment_method_only_the_term_counts() -> None:
    assert step(day=14.9, method_day=None) is Step.WAIT
    assert step(day=15, method_day=None) is Step.GIVE_UP
    assert step(day=16, method_day=None, given_up=True) is Step.WAIT


def test_new_payment_method_is_tried_even_after_giving_up() -> None:
    stolen = an_attempt(0, code="stolen_card")

    assert step(stolen, day=20, method_day=19, given_up=True) is Step.CHARGE
    again = an_attempt(19)
    assert step(stolen, again, day=25, method_day=19, given_up=True) is Step.WAIT


@pytest.mark.parametrize(
    ("status", "method_day", "given_up", "expected"),
    [
        (AttemptStatus.REQUIRES_ACTION, 2, False, Step.REPLACE),
        (AttemptStatus.REQUIRES_ACTION, 19, True, Step.REPLACE),
        (AttemptStatus.REQUIRES_ACTION, 1, True, Step.LOOK_UP),
        (AttemptStatus.REQUIRES_ACTION, None, True, Step.LOOK_UP),
        (AttemptStatus.PROCESSING, 2, False, Step.LOOK_UP),
        (UNKNOWN, 2, False, Step.LOOK_UP),
    ],
)
def test_new_payment_method_replaces_only_what_waits_for_its_payer(
    status: AttemptStatus, method_day: float | None, *, given_up: bool, expected: Step
) -> None:
    waiting = an_attempt(1, status, None)

    assert step(waiting, day=20, method_day=method_day, given_up=given_up) is expected


BODY = b'{"id":"evt_1","object":"event"}'
SIGNED_AT = datetime.fromtimestamp(1795000000, tz=UTC)
KNOWN = "t=1795000000,v1=b7e0197dfc4742963f57bbad01b89f628cc5295fa67c1de38c2ba731eaeaf677"


def test_signature_is_that_of_stripe() -> None:
    verify_signature(BODY, KNOWN, ["whsec_test"], SIGNED_AT)

    assert KNOWN.endswith(signature(BODY, 1795000000, "whsec_test"))


def test_either_secret_of_a_rotation_may_have_signed() -> None:
    verify_signature(BODY, KNOWN, ["whsec_new", "whsec_test"], SIGNED_AT)
    verify_signature(BODY, f"t=1795000000,v1=00,{KNOWN[13:]}", ["whsec_test"], SIGNED_AT)


@pytest.mark.parametrize(
    ("body", "header", "seconds", "reason"),
    [
        (BODY, KNOWN, 301, "SignatureExpired"),
        (BODY, KNOWN, -301, "SignatureExpired"),
        (BODY + b" ", KNOWN, 0, "SignatureInvalid"),
        (BODY, KNOWN.replace("1795000000", "1795000001"), 0, "SignatureInvalid"),
        (BODY, KNOWN.replace("v1=", "v0="), 0, "SignatureInvalid"),
        (BODY, "", 0, "SignatureInvalid"),
        (BODY, "t=now,v1=é", 0, "SignatureInvalid"),
        (BODY, f"t={'9' * 5000},v1=00", 0, "SignatureInvalid"),
    ],
)
def test_other_signatures_are_refused(body: bytes, header: str, seconds: int, reason: str) -> None:
    with pytest.raises(Rejected) as refused:
        verify_signature(body, header, ["whsec_test"], SIGNED_AT + timedelta(seconds=seconds))

    assert refused.value.reason == reason


def test_signature_at_the_edge_of_its_time_is_accepted() -> None:
    verify_signature(BODY, KNOWN, ["whsec_test"], SIGNED_AT + timedelta(seconds=300))


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"id": 5}', b"\xff"])
def test_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(Rejected, match="no event"):
        read_body(body)


@pytest.mark.parametrize(
    "event", [{}, {"data": 5}, {"data": {"object": {"metadata": {"invoice_id": "x"}}}}, None]
)
def test_event_of_something_else_names_no_invoice(event: object) -> None:
    assert invoice_of(event) is None
