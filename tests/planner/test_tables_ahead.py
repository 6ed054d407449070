"""Tables made by forks of the search are the tables that it would make."""

import os

import pytest

from autopar import forked
from autopar.plan.decisions import Plan, Precision
from autopar.planner import tables_ahead
from autopar.planner.model_choices import ModelChoices
from autopar.planner.tables_ahead import TablesAhead, likely_keys
from autopar.solve.candidate import Family
from tests.planner.subject import CLUSTER, Subject, captured

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="forks are for Linux alone")

FAMILIES = tuple(
    Family(1, tensor, 4 // tensor, 32 * tensor // (4 * size), size)
    for tensor in (1, 2, 4)
    for size in (1, 2, 4, 8)
    if 32 * tensor % (4 * size) == 0
)

GPT = Subject("examples/gpt.py", {"n_layer": 2, "n_embd": 128, "n_head": 4, "seq": 32, "vocab": 256}, 32)


def fresh_choices() -> ModelChoices:
    return ModelChoices(captured(GPT), CLUSTER, Precision.BF16, Plan(global_batch=32))


def test_keys_begin_with_the_smallest_micro_batches_of_the_divided_degrees() -> None:
    sure, likely = likely_keys(FAMILIES)
    assert sure == ((2, 1), (4, 1), (1, 1))
    assert likely[:3] == ((2, 8), (4, 8), (1, 8))
    assert len({*sure, *likely}) == len(sure) + len(likely)
    assert {*sure, *likely} <= {(family.tensor, family.micro_batch) for family in FAMILIES}


def test_forked_tables_equal_own_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "num_spare_processors", lambda: 1)
    monkeypatch.setattr(tables_ahead, "_WORTH_A_FORK_S", 0.0)
    own, given = fresh_choices(), fresh_choices()
    sure, likely = likely_keys(FAMILIES)
    taken = []
    with TablesAhead(given, FAMILIES) as ahead:
        ahead.tables(1, 1)
        assert ahead._ahead is not None
        for key in (*sure, *likely):
            known = given.has_tables(*key)
            assert ahead.tables(*key) == own.tables(*key)
            if not known and key in given._given:
                taken.append(key)
    assert taken, "the fork made none"
    assert ahead.num_blocks == own.num_blocks
