"""Rules as text."""

import pytest

from autopar.sharding.placement import PARTIAL, REPLICATE, Shard
from autopar.sharding.rule import Rule, parse_rule, replicated


@pytest.mark.parametrize(
    "rule",
    [
        Rule((Shard(2), REPLICATE), Shard(2)),
        Rule((Shard(0, 3), PARTIAL), PARTIAL),
        Rule((Shard(0),), Shard(0), None, (Shard(1), Shard(1))),
        replicated(3),
    ],
)
def test_text_reads_back(rule: Rule) -> None:
    assert parse_rule(str(rule)) == rule


@pytest.mark.parametrize(
    "text", ["", "shard(0)", "column -> shard(0)", "replicate -> ", "replicate; -> partial"]
)
def test_other_text_is_no_rule(text: str) -> None:
    assert parse_rule(text) is None


def test_elements_of_a_tuple() -> None:
    rule = Rule((Shard(0),), Shard(0), None, (Shard(1), REPLICATE))
    assert [rule.element(i) for i in range(3)] == [Shard(0), Shard(1), REPLICATE]
    assert Rule((Shard(0),), Shard(0)).element(2) == Shard(0)
