"""Statements are source: each room keeps its own in `queries.sql`, by name."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING, LiteralString, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADER = re.compile(r"^-- ([a-z_]+) --$", re.MULTILINE)


def load_queries(package: str) -> Mapping[str, LiteralString]:
    """Return the statements of a package's `queries.sql` by the name in their header.

    They are typed as literals, because they come with the code: psycopg's types then refuse
    any other text as SQL.

    Raises:
        ValueError: Two statements have one name, or text precedes the first header.
    """
    text = resources.files(package).joinpath("queries.sql").read_text(encoding="utf-8")
    preamble, *parts = _HEADER.split(text)
    names, statements = parts[::2], parts[1::2]
    if preamble.strip() or len(set(names)) != len(names):
        raise ValueError(f"queries.sql of {package} needs one unique `-- name --` per statement")
    return {
        name: cast("LiteralString", statement.strip())
        for name, statement in zip(names, statements, strict=True)
    }
