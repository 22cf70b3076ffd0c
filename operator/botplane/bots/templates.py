"""Render one template into one manifest, so strictly that a value can never become structure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from botplane.kube.resources import Manifest

# An escaped backslash is matched first, so that a text of backslashes is not taken for a pair.
_SURROGATES = re.compile(r"\\\\|\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")


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
            autoescape=False,  # noqa: S701 - tojson escapes, finalize refuses the rest
        )
        self._environment.filters["tojson"] = yaml_scalar

    def render(self, template: str, kind: str, values: Mapping[str, Any]) -> Manifest:
        """Return the manifest that a template and its values make.

        Raises:
            TemplateError: The text is not exactly one object of this kind and name.
        """
        text = self._environment.get_template(template).render(values)
        try:
            documents = list(yaml.load_all(text, Loader=_LOADER))
        except yaml.YAMLError:
            # Its message may quote the text, which has keys in it.
            raise TemplateError(f"{template} did not render into YAML") from None
        if len(documents) != 1 or not isinstance(documents[0], dict):
            raise TemplateError(f"{template} rendered into {len(documents)} documents, not one")
        manifest: Manifest = documents[0]
        meta = manifest["metadata"]
        identity = (manifest["kind"], meta.get("namespace"), meta.get("name"))
        if identity != (kind, values["namespace"], values["name"]):
            raise TemplateError(f"{template} rendered {identity}, not {kind} {values['name']}")
        return manifest


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def yaml_scalar(value: Any) -> Markup:
    r"""Return the value as JSON that YAML reads back to the letter.

    YAML knows no surrogate pairs, so a character beyond U+FFFF is written as `\UXXXXXXXX`.
    """
    text = json.dumps(value, ensure_ascii=True, sort_keys=True, allow_nan=False)
    return Markup(_SURROGATES.sub(_joined, text))  # noqa: S704 - this is the escaping


def _joined(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[0]
    high, low = (int(group, 16) for group in match.groups())
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08X}"


def _refuse_unfiltered(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    raise TemplateError("a template output lacks `| tojson`")
