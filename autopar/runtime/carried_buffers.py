"""Buffers that a model carries on by itself: a running mean of its own, a codebook, a power iteration.

BatchNorm's running statistics are not among them: training only writes them.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx
from torch._ops import OpOverload

from autopar.capture.model_graph import Block, InputKind
from autopar.capture.operator_facts import aliased_arguments, is_random, mutated_arguments

_FROM_SAMPLES = (InputKind.BATCH, InputKind.ACTIVATION)


def carried_buffers(blocks: Iterable[Block]) -> frozenset[str]:
    """Names of the buffers that blocks change and that something is computed with: in this micro-batch, or in
    the next."""
    changed: set[str] = set()
    read: set[str] = set()
    for block in blocks:
        found = _Changes(block, frozenset())
        changed |= found.changed
        read |= found.read
    return frozenset(changed & read)


def buffers_of_samples(blocks: Iterable[Block]) -> frozenset[str]:
    """Names of the buffers to which blocks write what depends on samples: data ranks come to differ."""
    blocks = tuple(blocks)
    found: frozenset[str] = frozenset()
    while True:
        more = found.union(*(_Changes(block, found).by_samples for block in blocks))
        if more == found:
            return found
        found = more


class _Changes:
    """What one block does to its buffers.

    Args:
        differing: buffers that hold what depends on samples before the block runs.

    Attributes:
        changed: names of the buffers that it writes to.
        by_samples: of these, to which it writes what depends on samples.
        read: names of the buffers that it computes with, other than to write to the same buffer.
    """

    def __init__(self, block: Block, differing: frozenset[str]) -> None:
        self.changed: set[str] = set()
        self.by_samples: set[str] = set()
        self.read: set[str] = set()
        entries = {entry.placeholder: entry for entry in block.inputs}
        self._names = {placeholder: entry.source for placeholder, entry in entries.items()}
        self._memory: dict[fx.Node, frozenset[fx.Node]] = {}  # of which nodes a result may share the memory
        self._buffers: set[fx.Node] = set()
        self._of_samples: set[fx.Node] = set()
        for node in block.graph.nodes:
            if node.op == "placeholder":
                entry = entries[node.name]
                self._memory[node] = frozenset({node})
                if entry.kind is InputKind.BUFFER:
                    self._buffers.add(node)
                if entry.kind in _FROM_SAMPLES or entry.source in differing:
                    self._of_samples.add(node)
            elif node.op == "call_function":
                self._call(node)

    def _call(self, node: fx.Node) -> None:
        shared = aliased_arguments(node)
        written = frozenset().union(*(self._memory[x] for x in mutated_arguments(node)))
        self._memory[node] = frozenset().union(*(self._memory[x] for x in shared)) or frozenset({node})
        arguments = {memory for x in node.all_input_nodes for memory in self._memory[x]}
        is_of_samples = is_random(node) or not arguments.isdisjoint(self._of_samples)
        if is_of_samples and not shared:
            self._of_samples.add(node)
        if _has_statistics(node):
            return
        if is_of_samples:
            self._of_samples |= written
        for memory in written & self._buffers:
            self.changed.add(self._names[memory.name])
            if is_of_samples:
                self.by_samples.add(self._names[memory.name])
        if written or not shared:
            self.read |= {self._names[x.name] for x in (arguments & self._buffers) - written}


def _has_statistics(node: fx.Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and any(x.name == "running_mean" for x in target._schema.arguments)
