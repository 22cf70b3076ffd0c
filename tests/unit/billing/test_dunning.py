"""What a tenant is told of an unpaid invoice."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest

from botplane.billing.dunning.policy import Notice, NoticeKind, Step, steps, text
from botplane.billing.payments.policy import Attempt, AttemptStatus, Unpaid
from tests.support.billing import at

ISSUED = at("2026-11-01T06:00:00Z")
DAY = timedelta(days=1)
FAILED, ACTION = AttemptStatus.FAILED, AttemptStatus.REQUIRES_ACTION
NOT_ENOUGH = "insufficient_funds"


def an_attempt(number: int, day: int, status: AttemptStatus, code: str | None = None) -> Attempt:
    moment = ISSUED + day * DAY
    return Attempt(
        attempt_no=number, status=status, decline_code=code, created_at=moment, changed_at=moment
    )


def told(
    *attempts: Attempt, day: float, has_method: bool = True, given_up: bool = False
) -> list[Step]:
    unpaid = Unpaid(
        issued_at=ISSUED,
        is_given_up=given_up,
        attempts=attempts,
        method_since=ISSUED - DAY if has_method else None,
    )
    return steps(unpaid, ISSUED + day * DAY)


FIRST = an_attempt(1, 0, FAILED, NOT_ENOUGH)
SECOND = an_attempt(2, 3, FAILED, NOT_ENOUGH)
THIRD = an_attempt(3, 8, FAILED, NOT_ENOUGH)
FOURTH = an_attempt(4, 15, FAILED, NOT_ENOUGH)
STOLEN = an_attempt(1, 0, FAILED, "stolen_card")
ASKED = an_attempt(1, 0, ACTION)


def declined(number: int, day: int) -> Step:
    return Step(
        name=f"attempt-{number}",
        kind=NoticeKind.DECLINED,
        decline_code=NOT_ENOUGH,
        next_at=ISSUED + day * DAY,
    )


@pytest.mark.parametrize(
    ("attempts", "day", "expected"),
    [
        ((), 0, []),
        ((FIRST,), 0, [declined(1, 3)]),
        ((FIRST,), 2, [declined(1, 3)]),
        ((FIRST, SECOND), 3, [declined(2, 8)]),
        ((FIRST, SECOND, THIRD), 8, [declined(3, 15)]),
        ((an_attempt(1, 0, AttemptStatus.UNKNOWN),), 0, []),
        ((an_attempt(1, 0, AttemptStatus.PROCESSING),), 9, []),
    ],
)
def test_soft_decline_says_when_it_is_tried_again(
    attempts: tuple[Attempt, ...], day: int, expected: list[Step]
) -> None:
    assert told(*attempts, day=day) == expected


@pytest.mark.parametrize(
    ("attempts", "day", "names", "kind"),
    [
        ((STOLEN,), 0, ["attempt-1"], NoticeKind.METHOD_NEEDED),
        ((STOLEN,), 3, ["attempt-1", "day-3"], NoticeKind.METHOD_NEEDED),
        ((STOLEN,), 9, ["attempt-1", "day-8"], NoticeKind.METHOD_NEEDED),
        ((FIRST, SECOND, THIRD, FOURTH), 15, ["attempt-4"], NoticeKind.METHOD_NEEDED),
        ((ASKED,), 0, ["attempt-1"], NoticeKind.CONFIRMATION_NEEDED),
        ((ASKED,), 7.9, ["attempt-1", "day-3"], NoticeKind.CONFIRMATION_NEEDED),
    ],
)
def test_what_needs_the_tenant_is_asked_for_and_reminded_of(
    attempts: tuple[Attempt, ...], day: float, names: list[str], kind: NoticeKind
) -> None:
    found = told(*attempts, day=day)

    assert [step.name for step in found] == names
    assert {step.kind for step in found} == {kind}
    assert {step.next_at for step in found} == {None}


@pytest.mark.parametrize(
    ("day", "name"),
    [(0, "day-0"), (2.9, "day-0"), (3, "day-3"), (7.9, "day-3"), (8, "day-8"), (14.9, "day-8")],
)
def test_tenant_without_a_method_is_reminded_on_the_days_of_the_schedule(
    day: float, name: str
) -> None:
    assert told(day=day, has_method=False) == [Step(name=name, kind=NoticeKind.DUE)]
    assert told(FIRST, day=day, has_method=False) == [Step(name=name, kind=NoticeKind.DUE)]


def test_end_is_told_alone() -> None:
    end = [Step(name="given-up", kind=NoticeKind.GIVEN_UP)]

    assert told(FIRST, SECOND, THIRD, FOURTH, day=16, given_up=True) == end
    assert told(day=16, has_method=False, given_up=True) == end


def test_notice_says_which_invoice_how_much_why_and_when() -> None:
    notice = Notice(
        tenant_id=UUID(int=1),
        number="INV-2026-000007",
        currency="USD",
        step="attempt-1",
        kind=NoticeKind.DECLINED,
        amount_minor=28438,
        decline_code=NOT_ENOUGH,
        next_at=ISSUED + 3 * DAY,
        noticed_at=ISSUED,
    )

    assert text(notice) == (
        "Invoice INV-2026-000007 over 284.38 USD: the payment was declined (insufficient_funds) "
        "and is tried again on 2026-11-04"
    )
