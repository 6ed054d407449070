"""What a plan may say of operators that several blocks repeat."""

from __future__ import annotations

from autopar.capture.model_graph import ModelGraph
from autopar.plan.decisions import Plan, Precision
from autopar.planner.model_choices import ModelChoices
from autopar.planner.realise import repeated_calls
from tests.planner.subject import CLUSTER, Subject, captured

LLAMA = Subject(
    "examples/hf/llama",
    {"num_hidden_layers": 2, "hidden_size": 512, "intermediate_size": 1024, "seq": 256, "vocab_size": 4096},
    32,
)


def keys_of_several_blocks(graph: ModelGraph) -> set[str]:
    """By brute force."""
    own = [{n.meta["operator_key"] for n in b.graph.nodes if n.op == "call_function"} for b in graph.blocks]
    return {key for i, keys in enumerate(own) for other in own[i + 1 :] for key in keys & other}


def test_repeated_calls_are_those_of_several_blocks() -> None:
    graph = captured(LLAMA).at(2)
    several = keys_of_several_blocks(graph)
    assert several, "the rotary tables are made again in every layer"
    found = repeated_calls(graph)
    for block, positions in zip(graph.blocks, found, strict=True):
        assert positions == {at for at, call in enumerate(block.calls) if call.operator_key in several}


def test_no_block_alone_overrules_what_others_repeat() -> None:
    choices = ModelChoices(captured(LLAMA), CLUSTER, Precision.BF16, Plan(global_batch=32))
    several = keys_of_several_blocks(choices.graph)
    overruled = {
        key
        for table in choices.tables(2, 2, thorough=True)
        for kind in table.kinds
        for choice in kind
        for key in choice.overrides
    }
    assert not overruled & several
