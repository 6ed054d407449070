"""Plain YAML with lines: what is read, where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autopar.errors import CostModelError, FileError, PlanError
from autopar.hardware.yaml_lines import parse_yaml, read_yaml


def test_every_key_and_item_has_its_line() -> None:
    document, places = parse_yaml(
        "a: 1\nb:\n  c: [x,\n    y]\n  - d\n".replace("  - d\n", ""), "f", FileError
    )
    assert document == {"a": 1, "b": {"c": ["x", "y"]}}
    assert places == {
        "": (1, 1),
        "a": (1, 1),
        "b": (2, 1),
        "b.c": (3, 3),
        "b.c.0": (3, 7),
        "b.c.1": (4, 5),
    }


def test_keys_are_text_as_written() -> None:
    document, places = parse_yaml('0: column\n1.5: row\n"*": replicate\nyes: x\n', "f", FileError)
    assert document == {"0": "column", "1.5": "row", "*": "replicate", "yes": "x"}
    assert places["*"] == (3, 1)


def test_scalars_are_those_of_pyyaml() -> None:
    document, _ = parse_yaml("a: none\nb: null\nc: 1.5\nd: true\ne: '7'\nf: 2026-01-01\n", "f", FileError)
    assert document == {"a": "none", "b": None, "c": 1.5, "d": True, "e": "7", "f": "2026-01-01"}


def test_empty_file_is_none() -> None:
    assert parse_yaml("# nothing\n", "f", FileError)[0] is None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is said twice \\(first at line 1\\)"),
        ("a: &x 1\nb: 2\n", 1, "anchors"),
        ("a: 1\nb: *x\n", 2, "aliases"),
        ("a: 1\nb: !!python/object:os.system x\n", 2, "tags"),
        ("a: 1\n<<: {b: 2}\n", 2, "merge keys"),
        ("a: 1\n---\nb: 2\n", 2, "a second document starts"),
        ("a: 1\nb: [1, 2\nc: 3\n", 3, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML: .*; the line is indented with a tab; write spaces"),
        ("a: 1\n? [x]\n: 2\n", 2, "a key is a list"),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        (b"a: 1\nb: \x07\n", 2, "not valid YAML"),
    ],
)
def test_refused_with_line(text: str | bytes, line: int, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        parse_yaml(text, "plan.yaml", PlanError)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"plan.yaml:{line}:{caught.value.column}: ")


def test_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(CostModelError, match=r"nowhere\.yaml: cannot read the file: No such file"):
        read_yaml(tmp_path / "nowhere.yaml", CostModelError)


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("é→\n"), max_size=8)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    )
)
def test_reads_back_what_pyyaml_writes(document: object) -> None:
    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    text = yaml.dump(document, Dumper=NoAliases, allow_unicode=True)
    assert parse_yaml(text, "f", FileError)[0] == document
