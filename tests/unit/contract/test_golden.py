"""What botplane makes of the examples is what the reviewed files say."""

from __future__ import annotations

import pytest

from tests.support.golden import FOLDER, cases

CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_the_manifests_are_those_of_the_reviewed_files(case: str) -> None:
    place = FOLDER / case / "expected"

    reviewed = {path.name: path.read_text(encoding="utf-8") for path in place.glob("*.yaml")}

    assert CASES[case] == reviewed, "if this is meant, run `make golden` and read the diff"


def test_no_file_is_left_of_a_former_case() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(CASES)
