"""What concerns more blocks than one and the next: tied parameters, and values carried past a block."""

from __future__ import annotations

from collections.abc import Mapping

from autopar.capture.model_graph import InputKind, ModelGraph
from autopar.cost.layout import SharedParameter
from autopar.planner.block_choices import parameter_names
from autopar.sharding.placement import REPLICATE, Placement, local_shape


def tied_parameters(graph: ModelGraph) -> list[tuple[str, tuple[int, ...]]]:
    """Parameters that several blocks read, with the blocks."""
    blocks: dict[str, list[int]] = {name: [] for name in graph.parameters}
    for block in graph.blocks:
        for name in dict.fromkeys(parameter_names(block)):
            blocks[name].append(block.index)
    return [(name, tuple(readers)) for name, readers in blocks.items() if len(readers) > 1]


def shared_parameters(
    graph: ModelGraph, placements: Mapping[str, Placement], degree: int
) -> tuple[SharedParameter, ...]:
    """The tied parameters as one rank holds them; those without a placement whole."""
    return tuple(
        SharedParameter(
            name,
            blocks,
            _local_elements(graph, name, placements.get(name, REPLICATE), degree),
            graph.parameters[name].requires_grad,
        )
        for name, blocks in tied_parameters(graph)
    )


def _local_elements(graph: ModelGraph, name: str, placement: Placement, degree: int) -> int:
    elements = 1
    for size in local_shape(graph.parameters[name].spec.shape, placement, degree):
        elements *= size
    return elements


def carried_bytes(graph: ModelGraph) -> tuple[int, ...]:
    """Per block, bytes that earlier blocks computed and later ones read: sent on if a stage ends there.

    Such values are replicated on the tensor axis.
    """
    producer = {name: block.index for block in graph.blocks for name in block.outputs}
    last_reader: dict[str, int] = {}
    for block in graph.blocks:
        for item in block.inputs:
            if item.kind is InputKind.ACTIVATION:
                last_reader[item.source] = max(last_reader.get(item.source, 0), block.index)
    carried = [0] * len(graph.blocks)
    for name, last in last_reader.items():
        for index in range(producer[name] + 1, last):
            carried[index] += graph.values[name].num_bytes
    return tuple(carried)
