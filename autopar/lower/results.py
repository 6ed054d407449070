"""Blocks that return something else than what the chain asks of them: values of the module's output."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import fx

from autopar.capture.model_graph import Block, InputKind
from autopar.capture.operator_facts import has_effect
from autopar.lower.resolve import ResolvedPlan
from autopar.sharding.placement import REPLICATE
from autopar.sharding.propagation import BlockSharding


@dataclass(frozen=True, slots=True)
class CutBlock:
    """A block that returns marked values, and of its own outputs those that are still read.

    Attributes:
        block: its ``outputs`` end with the names of the marks.
        sharding: marked values are returned whole on every rank of the tensor axis.
        is_whole: nothing was changed.
    """

    block: Block
    sharding: BlockSharding
    is_whole: bool


def cut_chain(resolved: ResolvedPlan, marks: Mapping[str, str]) -> tuple[CutBlock | None, ...]:
    """The chain that computes marked values and nothing besides; None for blocks that are not needed.

    Args:
        marks: global name of a value -> name under which its block returns it.
    """
    owners: dict[int, list[str]] = {}
    open_values = set(marks)
    for decision in resolved.blocks:
        computed = {node.name for node in decision.block.graph.nodes if node.op == "call_function"}
        own = sorted(open_values & computed)
        owners[decision.block.index] = own
        open_values -= set(own)
    assert not open_values, f"no block computes {sorted(open_values)}"
    needed: set[str] = set()
    found: list[CutBlock | None] = []
    for decision in reversed(resolved.blocks):
        block, own = decision.block, owners[decision.block.index]
        kept = [name for name in block.outputs if name in needed]
        if not kept and not own:
            found.append(None)
            continue
        if own or len(kept) < len(block.outputs):
            cut = _cut(block, decision.sharding, kept, {value: marks[value] for value in own})
        else:
            cut = CutBlock(block, decision.sharding, is_whole=True)
        needed.update(x.source for x in cut.block.inputs if x.kind is InputKind.ACTIVATION)
        found.append(cut)
    return tuple(reversed(found))


def _cut(block: Block, sharding: BlockSharding, kept: Collection[str], marks: Mapping[str, str]) -> CutBlock:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    returned = graph.graph_copy(block.graph, copies)
    assert isinstance(returned, tuple)
    for node, copy in copies.items():
        copy.name = node.name  # a graph avoids names of builtins (slice); the block knows inputs by them
    by_name = {copy.name: copy for copy in copies.values()}
    results = dict(zip(block.outputs, returned, strict=True))
    nodes = (*(results[name] for name in kept), *(by_name[value] for value in marks))
    end = graph.output(nodes)
    end.meta = {"module": "", "source_line": "", "operator_key": "", "no_grad": False}
    end.meta["val"] = tuple(node.meta["val"] for node in nodes)
    graph.eliminate_dead_code(is_impure_node=has_effect)
    for name in [x.placeholder for x in block.inputs if not by_name[x.placeholder].users]:
        graph.erase_node(by_name.pop(name))
    placements = dict(zip(block.outputs, sharding.outputs, strict=True))
    return CutBlock(
        block=replace(
            block,
            graph=graph,
            inputs=tuple(x for x in block.inputs if x.placeholder in by_name),
            outputs=(*kept, *marks.values()),
        ),
        sharding=replace(
            sharding, outputs=(*(placements[name] for name in kept), *(REPLICATE for _ in marks))
        ),
        is_whole=False,
    )
