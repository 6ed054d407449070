"""Which values of the graph need no parameter and may be computed again wherever they are read.

Masks, rotary tables and position ids are repeated inside each block that reads them instead of being sent. So
are views of a parameter: their storage is freed and gathered with the parameter. Random values and what
depends on a buffer that the step changes stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from autopar.capture.model_graph import InputKind
from autopar.capture.operator_facts import aliased_arguments, is_random, mutated_arguments


@dataclass(frozen=True, slots=True)
class Dataflow:
    """What :func:`analyse` finds.

    Attributes:
        repeatable: operators whose result each reader may compute for itself.
        parameter_only: other operators that depend on parameters but on no entry of the batch.
        alias_group: operator or placeholder -> representative of the values that share its storage.
        writers: representative -> operators that write into the group, in order.
    """

    repeatable: frozenset[fx.Node]
    parameter_only: frozenset[fx.Node]
    alias_group: Mapping[fx.Node, fx.Node]
    writers: Mapping[fx.Node, tuple[fx.Node, ...]]


def analyse(graph: fx.Graph, kinds: Mapping[str, InputKind]) -> Dataflow:
    """Analyses a static graph; ``kinds`` gives the kind of each placeholder by name."""
    nodes = [node for node in graph.nodes if node.op in ("placeholder", "call_function")]
    group = _alias_groups(nodes)
    writers: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        for written in mutated_arguments(node):
            if node not in writers.setdefault(group[written], []):
                writers[group[written]].append(node)
    parameters = {n for n in nodes if n.op == "placeholder" and kinds[n.name] is InputKind.PARAMETER}
    changing = {n for n in nodes if n.op == "placeholder" and group[n] in writers}
    fixed = _dependents(nodes, parameters | changing | {n for n in nodes if is_random(n)}, group, writers)
    batch = {n for n in nodes if n.op == "placeholder" and kinds[n.name] is InputKind.BATCH}
    moving = _dependents(nodes, batch | changing | {n for n in nodes if is_random(n)}, group, writers)
    repeatable = {n for n in nodes if n.op == "call_function" and n not in fixed}
    views = _parameter_views(nodes, parameters, group, writers)
    return Dataflow(
        frozenset(repeatable | views),
        frozenset(n for n in fixed - moving - views if n.op == "call_function"),
        group,
        {root: tuple(found) for root, found in writers.items()},
    )


def _alias_groups(nodes: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    parent = {node: node for node in nodes}

    def find(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for node in nodes:
        for source in aliased_arguments(node):
            # A value written by an operator that returns something else (batch_norm) is not part of its
            # result.
            if not (source in mutated_arguments(node) and not _returns_argument(node)):
                parent[find(node)] = find(source)
    return {node: find(node) for node in nodes}


def _returns_argument(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info for result in schema.returns)


def _dependents(
    nodes: list[fx.Node],
    sources: set[fx.Node],
    group: Mapping[fx.Node, fx.Node],
    writers: Mapping[fx.Node, list[fx.Node]],
) -> set[fx.Node]:
    """Everything computed from ``sources``, in-place writes included: a group is reached as a whole."""
    reached = set(sources)
    while True:
        before = len(reached)
        for node in nodes:
            if node not in reached and any(source in reached for source in node.all_input_nodes):
                reached.add(node)
        for root, found in writers.items():
            if any(writer in reached for writer in found):
                reached.update(n for n in nodes if group[n] is root and n.op != "placeholder")
        if len(reached) == before:
            return reached


def _parameter_views(
    nodes: list[fx.Node],
    parameters: set[fx.Node],
    group: Mapping[fx.Node, fx.Node],
    writers: Mapping[fx.Node, list[fx.Node]],
) -> set[fx.Node]:
    views: set[fx.Node] = set()
    for node in nodes:
        sources = node.all_input_nodes
        if node.op == "call_function" and sources and group[node] not in writers:
            aliased = aliased_arguments(node)
            if all(source in aliased and source in parameters | views for source in sources):
                views.add(node)
    return views
