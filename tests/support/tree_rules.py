"""Rules of the tree that no linter knows: sizes, and no coroutine in a pure module."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

MOST_LINES = 500
PURE_CONTRACT = "decisions and builders do no I/O"


def too_long(root: Path) -> Iterator[str]:
    """Yield the modules that are over the size limit."""
    for path in [*root.glob("operator/**/*.py"), *root.glob("tests/**/*.py")]:
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            yield f"{path}: {lines} lines; split it by subject ({MOST_LINES} are allowed)"


def impure(root: Path) -> Iterator[str]:
    """Yield the coroutines in modules that the import contract calls pure."""
    config = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = config["tool"]["importlinter"]["contracts"]
    modules = next(c["source_modules"] for c in contracts if c["name"] == PURE_CONTRACT)
    for module in modules:
        place = root / "operator" / module.replace(".", "/")
        for path in place.glob("**/*.py") if place.is_dir() else [place.with_suffix(".py")]:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.AsyncFunctionDef | ast.Await):
                    yield f"{path}:{node.lineno}: a pure module has no coroutines"


def main() -> int:
    """Print what breaks a rule and return the exit code."""
    root = Path(__file__).parents[2]
    problems = [*too_long(root), *impure(root)]
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
