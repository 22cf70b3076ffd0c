"""What our service accounts may do is what they did, in all sessions of the suite together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.rights import ACCOUNTS, granted_to, recorded, roles

FOLDER = "BOTPLANE_RIGHTS_FROM"


@pytest.mark.skipif(FOLDER not in os.environ, reason=f"{FOLDER} names what the suite has used")
@pytest.mark.parametrize("account", ACCOUNTS)
def test_what_is_granted_is_used_and_what_is_used_is_granted(account: str) -> None:
    granted = granted_to(account)
    use = recorded(Path(os.environ[FOLDER]), account)

    unused = sorted(granted - use.used)
    # A role that was bound a moment ago takes effect with a delay; what is granted passes later.
    missing = sorted(set(use.refused) - granted)
    early = sum(count for right, count in use.refused.items() if right in granted)

    print(f"\n{account}: {len(granted)} rights, {len(unused)} unused, {len(missing)} missing")
    print(f"{early} calls came before their role took effect")
    assert unused == []
    assert missing == []
    assert use.used <= granted


def test_no_right_is_a_wildcard() -> None:
    rules = [rule for role in roles().values() for rule in role["rules"]]

    fields = ("apiGroups", "resources", "verbs")

    assert not [rule for rule in rules if any("*" in rule[field] for field in fields)]
