"""Templates: a value never becomes structure, and a slip of ours is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import Environment, UndefinedError, nodes

from botplane.bots.templates import TemplateError, Templates
from tests.support.declared import ROOT
from tests.support.hostile import HOSTILE

FOLDER = ROOT / "templates/k8s"
NAMED = {"name": "arb-1", "namespace": "tenant-acme"}
SHAPE = "kind: ConfigMap\nmetadata:\n  name: {{ name | tojson }}\n"
WHOLE = SHAPE + "  namespace: {{ namespace | tojson }}\ndata:\n  text: {{ text | tojson }}\n"


def rendered(folder: Path, template: str, **values: Any) -> dict[str, Any]:
    (folder / "t.yaml.j2").write_text(template, encoding="utf-8")
    return Templates(folder).render("t.yaml.j2", "ConfigMap", NAMED | values)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_hostile_text_comes_out_to_the_letter_and_nothing_else_does(
    tmp_path: Path, text: str
) -> None:
    manifest = rendered(tmp_path, WHOLE, text={text: [text]})

    assert manifest == {"kind": "ConfigMap", "metadata": NAMED, "data": {"text": {text: [text]}}}


@given(text=st.text())
@example("\\ud83d\\ude00")
@example("\\\U0001f600")
def test_any_text_comes_out_to_the_letter(tmp_path_factory: Any, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()

    assert rendered(folder, WHOLE, text=text)["data"] == {"text": text}


@pytest.mark.parametrize("text", ["\ud800", "\\ud83d\ude00", "x\udfff"], ids=ascii)
def test_half_a_character_is_refused_or_kept_but_never_changed(tmp_path: Path, text: str) -> None:
    try:
        manifest = rendered(tmp_path, WHOLE, text=text)
    except TemplateError:
        return

    assert manifest["data"] == {"text": text}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 0.1], ids=str)
def test_a_float_is_refused(tmp_path: Path, number: float) -> None:
    with pytest.raises(TemplateError, match="float"):
        rendered(tmp_path, WHOLE, text=number)


@pytest.mark.parametrize(
    "template",
    [
        WHOLE.replace("text | tojson", "text"),
        WHOLE.replace("text | tojson", "text | upper"),
        WHOLE + "---\n" + WHOLE,
        "# nothing\n",
        "- a\n- b\n",
        WHOLE.replace("ConfigMap", "Secret"),
        WHOLE.replace("{{ name | tojson }}", "other"),
        WHOLE.replace("{{ namespace | tojson }}", "kube-system"),
        WHOLE.replace("  text:", " text: [\n"),
        SHAPE,
    ],
    ids=[
        "filter forgotten", "another filter", "two documents", "no document", "a list",
        "another kind", "another name", "another namespace", "not YAML", "no namespace",
    ],
)  # fmt: skip
def test_a_slip_of_ours_is_an_error(tmp_path: Path, template: str) -> None:
    with pytest.raises(TemplateError):
        rendered(tmp_path, template, text="x\nkind: Secret")


def test_a_value_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises((UndefinedError, TypeError)):
        rendered(tmp_path, WHOLE)


def test_the_error_does_not_repeat_what_was_rendered(tmp_path: Path) -> None:
    broken = WHOLE.replace("{{ text | tojson }}", "{{ text | tojson }} ]")

    with pytest.raises(TemplateError) as caught:
        rendered(tmp_path, broken, text="CANARY")

    assert "CANARY" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.j2")), ids=lambda path: path.name)
def test_every_hole_of_a_template_is_one_whole_scalar(path: Path) -> None:
    tree = Environment(autoescape=True).parse(path.read_text(encoding="utf-8"))

    for output in tree.find_all(nodes.Output):
        before = ""
        for node in output.nodes:
            if isinstance(node, nodes.TemplateData):
                assert not before or node.data.startswith("\n"), "text is glued behind a hole"
                before = ""
                text = node.data
                continue
            assert isinstance(node, nodes.Filter), f"line {node.lineno}: no filter"
            assert node.name == "tojson"
            assert isinstance(node.node, nodes.Name), f"line {node.lineno}: not a plain value"
            assert text.endswith((": ", "- ")), f"line {node.lineno}: not a whole scalar"
            before = node.name
    allowed = (nodes.Output, nodes.If)
    assert all(isinstance(node, allowed) for node in tree.body), "loops and sets are Python's"
