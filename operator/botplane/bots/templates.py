"""Render one template into one manifest, so strictly that a value can never become structure.

The template engine sees the values only to choose between parts; into the text it writes numbered
holes. The text is parsed once for each choice of parts, and values are put into the holes of what
was parsed: a value is never text that YAML reads, and a pass costs no parsing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup

from botplane.kube.resources import Manifest

_HOLE = re.compile(r"@@(\d+)@@")
_HOLES = "__holes__"
_SCALARS = frozenset({str, int, bool, type(None)})


class TemplateError(Exception):
    """A template did not render into the one object that was asked for: a bug of ours."""


class Templates:
    """The templates of a folder, each plain Kubernetes YAML with whole scalars as holes."""

    def __init__(self, folder: Path) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(folder),
            undefined=StrictUndefined,
            finalize=_refuse_unfiltered,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            autoescape=False,  # noqa: S701 - values do not get into the text
        )
        self._environment.filters["tojson"] = _hole
        self._parsed: dict[str, Manifest] = {}
        """By text with holes: as many as there are choices of parts in the templates."""

    def render(self, template: str, kind: str, values: Mapping[str, Any]) -> Manifest:
        """Return the manifest that a template and its values make.

        Raises:
            TemplateError: The text is not exactly one object of this kind and name.
        """
        holes: list[Any] = []
        text = self._environment.get_template(template).render(values, **{_HOLES: holes})
        if text not in self._parsed:
            self._parsed[text] = _parsed(template, text, len(holes))
        manifest: Manifest = _filled(self._parsed[text], holes)
        meta = manifest["metadata"]
        identity = (manifest["kind"], meta.get("namespace"), meta.get("name"))
        if identity != (kind, values["namespace"], values["name"]):
            raise TemplateError(f"{template} rendered {identity}, not {kind} {values['name']}")
        return manifest


@pass_context
def _hole(context: Context, value: Any) -> Markup:
    """Keep the value, as JSON reads it back, and return the hole that it will fill."""
    holes: list[Any] = context[_HOLES]
    if isinstance(value, float):
        raise TemplateError(f"{value} is a float, of which JSON keeps another one or none")
    if type(value) not in _SCALARS:
        value = orjson.loads(orjson.dumps(value))
    holes.append(value)
    return Markup(f'"@@{len(holes) - 1}@@"')  # noqa: S704 - a number of ours


def _parsed(template: str, text: str, holes: int) -> Manifest:
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise TemplateError(f"{template} did not render into YAML: {error}") from None
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise TemplateError(f"{template} rendered into {len(documents)} documents, not one")
    if sorted(_numbers(documents[0])) != list(range(holes)):
        raise TemplateError(f"{template} has a hole that is not one whole scalar")
    return documents[0]


def _numbers(node: Any) -> list[int]:
    """Return the numbers of the holes that are whole values."""
    if isinstance(node, dict):
        return [number for value in node.values() for number in _numbers(value)]
    if isinstance(node, list):
        return [number for item in node for number in _numbers(item)]
    match = _HOLE.fullmatch(node) if isinstance(node, str) else None
    return [] if match is None else [int(match[1])]


def _filled(node: Any, holes: list[Any]) -> Any:
    if isinstance(node, dict):
        return {key: _filled(value, holes) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(item, holes) for item in node]
    if isinstance(node, str) and node.startswith("@@"):
        return holes[int(node[2:-2])]
    return node


def _refuse_unfiltered(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    raise TemplateError("a template output lacks `| tojson`")
