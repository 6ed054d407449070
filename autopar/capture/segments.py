"""The chain: which operator belongs to which block, and what the blocks are called.

Operators are walked in execution order, so a block reads only from blocks before it. Operators of a piece
(see ``pieces``) form its segment; what runs between two pieces joins one of them; what runs after the last is
``loss``. Segments without a parameter and without real work join a neighbour.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from autopar.capture.dataflow import Dataflow
from autopar.capture.model_graph import InputKind

LOSS = "loss"
_HEAVY = (
    "linear",
    "addmm",
    "matmul",
    "mm",
    "bmm",
    "baddbmm",
    "einsum",
    "conv",
    "attention",
    "lstm",
    "gru",
    "rnn",
)


@dataclass(frozen=True, slots=True)
class Chain:
    """Which operators, by node name, form each block.

    Attributes:
        names: block names, in order.
        block_of: node name -> position of its block; repeated operators have none.
    """

    names: tuple[str, ...]
    block_of: Mapping[str, int]


@dataclass(slots=True)
class _Segment:
    piece: str | None
    repeated: bool
    nodes: list[fx.Node] = field(default_factory=list)


def divide(
    graph: fx.Graph, flow: Dataflow, pieces: Mapping[str, bool], kinds: Mapping[str, InputKind], loss: fx.Node
) -> Chain:
    """Divides the operators of a static graph into a chain of segments."""
    body = [n for n in graph.nodes if n.op == "call_function" and n not in flow.repeatable]
    segments = _runs(body, pieces)
    segments = _place_glue(segments)
    segments = _merge_light(segments, flow, kinds)
    segments = _merge_shared_storage(segments, flow)
    segments = _merge_complex(segments, flow, kinds)
    segments = _end_with_loss(segments, loss)
    position = {node: index for index, segment in enumerate(segments) for node in segment.nodes}
    _move_parameter_values(body, position, flow)
    for node in body:  # a tuple never crosses: its elements are taken where it is made
        if node.target is operator.getitem:
            position[node] = position[node.all_input_nodes[0]]
    order = sorted(set(position.values()))
    rank = {old: new for new, old in enumerate(order)}
    names = _names([segments[index] for index in order], _has_parameter(segments[-1], flow, kinds))
    return Chain(names, {node.name: rank[position[node]] for node in body})


def _piece_of(node: fx.Node, pieces: Mapping[str, bool]) -> str | None:
    name: str = node.meta["module"]
    while name and name not in pieces:
        name = name.rpartition(".")[0]
    return name or None


def _runs(body: list[fx.Node], pieces: Mapping[str, bool]) -> list[_Segment]:
    """Maximal runs of operators of one piece; operators between pieces form runs without one."""
    segments: list[_Segment] = []
    for node in body:
        piece = _piece_of(node, pieces)
        if node.target is operator.getitem and segments and node.args[0] in segments[-1].nodes:
            piece = segments[-1].piece
        if not segments or segments[-1].piece != piece:
            segments.append(_Segment(piece, pieces.get(piece or "", False)))
        segments[-1].nodes.append(node)
    return segments


def _place_glue(segments: list[_Segment]) -> list[_Segment]:
    """Gives each run between two pieces to one of them: the fewest values cross, else to the one before.

    After the last of a row of repeated modules only what also follows the others stays with it, so that the
    last has the same class as the others.
    """
    pieces = [index for index, segment in enumerate(segments) if segment.piece is not None]
    if not pieces:
        return [_Segment(LOSS, False, [node for segment in segments for node in segment.nodes])]
    usual = _usual_glue(segments)
    for index, segment in enumerate(segments):
        if segment.piece is not None or index > pieces[-1]:
            continue
        if index < pieces[0]:
            segments[index + 1].nodes[:0] = segment.nodes
        else:
            before, after = segments[index - 1], segments[index + 1]
            cut = _best_cut(before, segment.nodes, after)
            if before.repeated and not after.repeated:
                cut = min(cut, _common_prefix(segment.nodes, usual))
            before.nodes += segment.nodes[:cut]
            after.nodes[:0] = segment.nodes[cut:]
        segment.nodes = []
    tail = segments[-1]
    if tail.piece is None:
        before = segments[-2]
        if before.repeated:
            cut = _common_prefix(tail.nodes, usual)
        else:
            rest = _Segment(LOSS, False, tail.nodes[-1:])
            cut = _best_cut(before, tail.nodes[:-1], rest, prefer_late=False)
        before.nodes += tail.nodes[:cut]
        tail.nodes, tail.piece = tail.nodes[cut:], LOSS
    return [segment for segment in segments if segment.nodes]


def _usual_glue(segments: list[_Segment]) -> list[fx.Node]:
    """What runs between the first two elements of a repeated list."""
    for before, glue, after in zip(segments, segments[1:], segments[2:], strict=False):
        if before.repeated and glue.piece is None and after.repeated:
            return list(glue.nodes)
    return []


def _common_prefix(nodes: list[fx.Node], usual: list[fx.Node]) -> int:
    length = 0
    for node, other in zip(nodes, usual, strict=False):
        if node.target is not other.target:
            break
        length += 1
    return length


def _best_cut(before: _Segment, glue: list[fx.Node], after: _Segment, prefer_late: bool = True) -> int:
    """How many operators of ``glue`` go with the segment before it, so that the fewest values cross."""
    inside = set(before.nodes) | set(glue) | set(after.nodes)
    best, fewest = len(glue), None
    cuts = range(len(glue) + 1)
    for cut in reversed(cuts) if prefer_late else cuts:
        first = [*before.nodes, *glue[:cut]]
        later = inside - set(first)
        crossing = (node for node in first if any(user in later for user in node.users))
        live = sum(2 if _is_complex(node) else 1 for node in crossing)
        if fewest is None or live < fewest:
            best, fewest = cut, live
    return best


def _merge_light(segments: list[_Segment], flow: Dataflow, kinds: Mapping[str, InputKind]) -> list[_Segment]:
    """Joins segments without parameters and work to a neighbour, and light ones across wide cuts."""
    index = 0
    while index < len(segments):
        segment = segments[index]
        last = index == len(segments) - 1
        if (
            len(segments) > 1
            and not last
            and not _has_parameter(segment, flow, kinds)
            and not _heavy(segment)
        ):
            index = _merge_into_neighbour(segments, index)
            continue
        if index and not segment.repeated and not segments[index - 1].repeated and not last:
            earlier = segments[index - 1]
            if not (_heavy(segment) and _heavy(earlier)) and _num_live(segments, index, flow) > 1:
                earlier.nodes += segment.nodes
                del segments[index]
                continue
        index += 1
    return segments


def _merge_into_neighbour(segments: list[_Segment], index: int) -> int:
    """Merges the segment at ``index`` and returns where to go on."""
    before = segments[index - 1] if index else None
    after = segments[index + 1]
    if before is None or (before.repeated and not after.repeated and index + 2 < len(segments)):
        after.nodes[:0] = segments[index].nodes
        del segments[index]
        return index
    before.nodes += segments[index].nodes
    del segments[index]
    return index


def _has_parameter(segment: _Segment, flow: Dataflow, kinds: Mapping[str, InputKind]) -> bool:
    def reads(node: fx.Node) -> bool:
        for source in node.all_input_nodes:
            if source.op == "placeholder":
                if kinds[source.name] is InputKind.PARAMETER:
                    return True
            elif source in flow.repeatable and reads(source):
                return True
        return False

    return any(reads(node) for node in segment.nodes)


def _heavy(segment: _Segment) -> bool:
    names = (str(getattr(node.target, "__name__", "")).partition(".")[0] for node in segment.nodes)
    return any(
        name in _HEAVY or name.startswith("conv") or "attention" in name or "_mm" in name for name in names
    )


def _num_live(segments: list[_Segment], index: int, flow: Dataflow) -> int:
    """Values with gradient that cross the cut before segment ``index``."""
    later = {node for segment in segments[index:] for node in segment.nodes}
    return sum(
        any(user in later for user in node.users)
        for segment in segments[:index]
        for node in segment.nodes
        if node not in flow.parameter_only
        and isinstance(node.meta["val"], torch.Tensor)
        and node.meta["val"].is_floating_point()
    )


def _merge_shared_storage(segments: list[_Segment], flow: Dataflow) -> list[_Segment]:
    """Keeps together what in-place operators tie: values that share a written storage, and the writers.

    Of a buffer also the readers: every stage has a copy of its own, which does not see what others write. So
    the calls of one BatchNorm in a module that runs several times stay in one block.
    """
    at = _places(segments)
    ranges = []
    for root in flow.writers:
        members = [at[n] for n, group in flow.alias_group.items() if group is root and n in at]
        members += [at[n] for n in flow.writers[root] if n in at]
        if root.op == "placeholder":
            tied = [n for n, group in flow.alias_group.items() if group is root]
            members += [at[user] for n in tied for user in n.users if user in at]
        if members:
            ranges.append((min(members), max(members)))
    return _merge_ranges(segments, ranges)


def _merge_complex(
    segments: list[_Segment], flow: Dataflow, kinds: Mapping[str, InputKind]
) -> list[_Segment]:
    """Keeps together what hands on complex values with gradient: stages send gradients of real ones."""
    at = _places(segments)
    ranges = []
    with_gradient = {n for n in flow.alias_group if n.op == "placeholder" and _is_parameter(n, kinds)}
    for node in flow.alias_group:  # in the order of the graph
        derived = any(source in with_gradient for source in node.all_input_nodes)
        if not derived or node.meta["no_grad"] or node.target is torch.ops.aten.detach.default:
            continue
        with_gradient.add(node)
        readers = [at[user] for user in node.users if user in at]
        if node in at and readers and _is_complex(node):
            ranges.append((at[node], max(readers)))
    return _merge_ranges(segments, ranges)


def _is_parameter(node: fx.Node, kinds: Mapping[str, InputKind]) -> bool:
    return kinds[node.name] is InputKind.PARAMETER


def _is_complex(node: fx.Node) -> bool:
    value = node.meta["val"]
    values = value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(item, torch.Tensor) and item.is_complex() for item in values)


def _places(segments: list[_Segment]) -> dict[fx.Node, int]:
    return {node: index for index, segment in enumerate(segments) for node in segment.nodes}


def _merge_ranges(segments: list[_Segment], ranges: list[tuple[int, int]]) -> list[_Segment]:
    """Makes one segment of those from the first to the last of each range."""
    joined = list(range(len(segments)))  # segment -> first segment that it is merged into
    for start, end in ranges:
        for index in range(start, end + 1):
            joined[index] = min(joined[index], start)
    merged: dict[int, _Segment] = {}
    for index, segment in enumerate(segments):
        first = index
        while joined[first] != first:
            first = joined[first]
        if first in merged:
            merged[first].nodes += segment.nodes
        else:
            merged[first] = segment
    return list(merged.values())


def _end_with_loss(segments: list[_Segment], loss: fx.Node) -> list[_Segment]:
    at = next(index for index, segment in enumerate(segments) if loss in segment.nodes)
    for segment in segments[at + 1 :]:  # only effects (statistics) can follow the loss
        segments[at].nodes += segment.nodes
    return segments[: at + 1]


def _move_parameter_values(body: list[fx.Node], position: dict[fx.Node, int], flow: Dataflow) -> None:
    """Moves what is computed from parameters alone to its first reader, where the parameters are."""
    for node in reversed(body):
        if node in flow.parameter_only:
            readers = [position[user] for user in node.users if user in position]
            if readers:
                position[node] = max(position[node], min(readers))


def _names(segments: list[_Segment], last_has_parameter: bool) -> tuple[str, ...]:
    """Module names, numbered where a module runs again; ``loss`` is the last unless it has parameters."""
    counts: dict[str, int] = {}
    names: list[str] = []
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        name = LOSS if segment.piece is None or (last and not last_has_parameter) else segment.piece
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name}@{counts[name]}")
    return tuple(names)
