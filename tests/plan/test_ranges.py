import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.plan.decisions import PatternLine
from autopar.plan.patterns import first_match
from autopar.plan.ranges import compact, expand, pattern_lines

names = st.lists(
    st.from_regex(r"(a\.|b|c\.d)(0|[1-9][0-9]?)(\.e)?|[a-z]{1,3}|[0-9]", fullmatch=True), unique=True
)


@pytest.mark.parametrize(
    ("entry", "expanded"),
    [
        ("blocks.0-2", ("blocks.0", "blocks.1", "blocks.2")),
        ("blocks.9-10.attn", ("blocks.9.attn", "blocks.10.attn")),
        ("conv1-2", ("conv1", "conv2")),
        ("3-3", ("3",)),
        ("loss", ("loss",)),
        ("a-b", ("a-b",)),
    ],
)
def test_expand(entry: str, expanded: tuple[str, ...]) -> None:
    assert expand(entry) == expanded


@pytest.mark.parametrize("entry", ["a.3-1", "a.0-1.b.0-1", "a.0-99999999", "a.0-99999999999999999999"])
def test_expand_refuses(entry: str) -> None:
    with pytest.raises(ValueError, match=f"'{entry}'"):
        expand(entry)


def test_compact_joins_neighbours_only() -> None:
    assert compact(["wte", "h.0", "h.1", "h.3", "g.4", "g.5", "loss"]) == (
        "wte",
        "h.0-1",
        "h.3",
        "g.4-5",
        "loss",
    )


@given(names)
def test_compact_then_expand_gives_the_names(given_names: list[str]) -> None:
    assert [name for entry in compact(given_names) for name in expand(entry)] == given_names


@given(
    st.dictionaries(
        st.from_regex(r"h\.(0|[1-9][0-9]?)|[a-z]{1,3}", fullmatch=True), st.sampled_from("xyz"), min_size=1
    )
)
def test_pattern_lines_give_each_name_its_word(words: dict[str, str]) -> None:
    lines = pattern_lines(words)
    for name, word in words.items():
        line = first_match(lines, name)
        assert line is not None and line.word == word


def test_pattern_lines_are_few() -> None:
    words = {f"h.{i}": "full" if i < 3 else "none" for i in range(9)}
    assert pattern_lines(words) == (PatternLine("h.0-2", "full"), PatternLine("h.3-8", "none"))
    assert pattern_lines(dict.fromkeys(words, "none")) == (PatternLine("*", "none"),)
