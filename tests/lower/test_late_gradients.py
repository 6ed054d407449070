"""Which gradients may be added up at the end of a step, and that nothing is left of the earlier sums."""

from __future__ import annotations

from autopar.capture.model_graph import InputKind
from autopar.lower import collectives
from autopar.lower.block import LoweredBlock, lower_block
from autopar.lower.late_gradients import late_parameters, without_sums
from autopar.lower.resolve import resolve
from tests.lower.models import MODELS, load, plan_for


def late(words: dict[str, str], degree: int = 2) -> tuple[LoweredBlock, set[str], dict[str, str]]:
    _, graph = load("gpt")
    resolved = resolve(plan_for(graph, MODELS["gpt"].tensor, degree, words), graph)
    (decision,) = (x for x in resolved.blocks if x.block.name == "blocks.0")
    names = {x.placeholder: x.source for x in decision.block.inputs if x.kind is InputKind.PARAMETER}
    lowered = lower_block(decision.block, decision.sharding)
    return lowered, {names[x] for x in late_parameters(lowered.graph, names)}, names


def test_norms_between_sequence_shards_may_wait() -> None:
    _, found, _ = late({"*": "sequence"})
    assert {"blocks.0.ln_1.weight", "blocks.0.ln_1.bias", "blocks.0.ln_2.weight"} <= found
    assert not {name for name in found if ".attn.qkv" in name or ".mlp.fc" in name}


def test_what_every_rank_has_whole_does_not_wait() -> None:
    _, found, _ = late({"*": "replicate"})
    assert not {name for name in found if ".ln_" in name}


def test_the_sums_of_late_gradients_are_gone() -> None:
    lowered, found, names = late({"*": "sequence"})
    program = without_sums(lowered.graph, {x for x, name in names.items() if name in found})
    sums = [
        node.args[1].name
        for node in program.graph.nodes
        if node.target is collectives.copy_to and node.args[1].name in names
    ]
    before = [node for node in lowered.graph.graph.nodes if node.target is collectives.copy_to]
    assert not sums and len(before) > 0
