"""What a block of the model reads, by name, and which buffers it changes."""

from __future__ import annotations

from torch import fx

from autopar.capture.model_graph import Block, InputKind
from autopar.capture.operator_facts import aliased_arguments, mutated_arguments


def reads(block: Block) -> tuple[str, ...]:
    """Global names of the activations that a block reads."""
    return _sources(block, InputKind.ACTIVATION)


def batch_reads(block: Block) -> tuple[str, ...]:
    """Batch keys that a block reads."""
    return _sources(block, InputKind.BATCH)


def parameter_reads(block: Block) -> tuple[str, ...]:
    """Canonical names of the parameters that a block reads."""
    return _sources(block, InputKind.PARAMETER)


def buffer_reads(block: Block) -> tuple[str, ...]:
    """Names of the buffers that a block reads or changes."""
    return _sources(block, InputKind.BUFFER)


def _sources(block: Block, kind: InputKind) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.source for entry in block.inputs if entry.kind is kind))


def mutated_buffers(block: Block) -> frozenset[str]:
    """Names of the buffers that a block's graph changes in place, directly or through views."""
    names = {x.placeholder: x.source for x in block.inputs if x.kind is InputKind.BUFFER}
    origins: dict[fx.Node, frozenset[str]] = {}
    changed: frozenset[str] = frozenset()
    for node in block.graph.nodes:
        if node.op == "placeholder":
            origins[node] = frozenset({names[node.name]} if node.name in names else ())
        elif node.op == "call_function":
            changed = changed.union(*(origins[x] for x in mutated_arguments(node)))
            origins[node] = frozenset().union(*(origins[x] for x in aliased_arguments(node)))
    return changed
