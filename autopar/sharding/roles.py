"""What a parameter is for, read off the operators that use it: it decides what ``column`` means."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import fx

from autopar.capture.model_graph import Block, InputKind, ModelGraph

aten = torch.ops.aten


class Role(Enum):
    """Roles, and the dims that ``column``, ``row``, ``vocab`` shard; None: replicate; "": no meaning."""

    LINEAR_WEIGHT = ("weight (out, in) of a linear", 0, 1, 0)
    PRODUCT_WEIGHT = ("weight (in, out) of a matrix product", 1, 0, 1)
    EMBEDDING = ("table (vocabulary, hidden) of an embedding", 1, 0, 0)
    CONVOLUTION_WEIGHT = ("weight (out, in, ...) of a convolution", 0, 1, "")
    TRANSPOSED_CONVOLUTION_WEIGHT = ("weight (in, out, ...) of a transposed convolution", 1, 0, "")
    BIAS = ("bias", 0, None, 0)
    CHANNEL_NORM = ("channel statistics or weight of a normalisation", 0, None, "")
    NORM = ("weight of a normalisation over the hidden dim", None, None, "")
    OTHER = ("parameter", "", "", "")

    @property
    def noun(self) -> str:
        """For messages."""
        return str(self.value[0])

    def dim_of(self, word: str) -> int | str | None:
        """Dim that ``word`` shards, None where it means replicate, "" where it means nothing."""
        dim: int | str | None = self.value[1 + ("column", "row", "vocab").index(word)]
        return dim


@dataclass(frozen=True, slots=True)
class Use:
    """One operator that reads a parameter (or a buffer).

    Attributes:
        role: as what.
        block: index of the block.
        node: the operator, in the graph of the first block of the class.
        module: qualified name of the module that the operator belongs to.
    """

    role: Role
    block: int
    node: fx.Node
    module: str


# Operator -> role by argument name.
_ROLES: tuple[tuple[str, dict[str, Role]], ...] = (
    ("linear", {"weight": Role.LINEAR_WEIGHT, "bias": Role.BIAS}),
    ("addmm", {"mat2": Role.PRODUCT_WEIGHT, "self": Role.BIAS}),
    ("mm", {"mat2": Role.PRODUCT_WEIGHT}),
    ("matmul", {"other": Role.PRODUCT_WEIGHT}),
    ("embedding", {"weight": Role.EMBEDDING}),
    *((f"conv{d}d", {"weight": Role.CONVOLUTION_WEIGHT, "bias": Role.BIAS}) for d in (1, 2, 3)),
    *(
        (f"conv_transpose{d}d", {"weight": Role.TRANSPOSED_CONVOLUTION_WEIGHT, "bias": Role.BIAS})
        for d in (1, 2, 3)
    ),
    *(
        (name, dict.fromkeys(("weight", "bias", "running_mean", "running_var"), Role.CHANNEL_NORM))
        for name in ("batch_norm", "instance_norm", "group_norm")
    ),
    *((name, dict.fromkeys(("weight", "bias"), Role.NORM)) for name in ("layer_norm", "rms_norm")),
)
_BY_OPERATOR = dict(_ROLES)
_TRANSPARENT = frozenset({"to", "_to_copy", "contiguous", "clone", "alias", "detach"})
_TRANSPOSING = frozenset({"t", "transpose", "numpy_T", "mT"})
_TRANSPOSED = {Role.LINEAR_WEIGHT: Role.PRODUCT_WEIGHT, Role.PRODUCT_WEIGHT: Role.LINEAR_WEIGHT}


def parameter_uses(graph: ModelGraph) -> dict[str, tuple[Use, ...]]:
    """Every use of every parameter and buffer, by canonical name, in the order of execution."""
    found: dict[str, list[Use]] = {}
    by_class: dict[str, list[tuple[int, list[_UseInClass]]]] = {}
    for block in graph.blocks:
        if block.class_key not in by_class:
            by_class[block.class_key] = _uses_in(block)
        calls = block.calls
        for position, uses in by_class[block.class_key]:
            named = [Use(use.role, block.index, use.node, calls[use.call].module) for use in uses]
            found.setdefault(block.inputs[position].source, []).extend(named)
    return {name: tuple(uses) for name, uses in found.items()}


@dataclass(frozen=True, slots=True)
class _UseInClass:
    """A use that all blocks of a class have.

    Attributes:
        node: in the graph of the first of them.
        call: which of the calls it is.
    """

    role: Role
    node: fx.Node
    call: int


def _uses_in(block: Block) -> list[tuple[int, list[_UseInClass]]]:
    """Of every parameter and buffer of a block, by its position among the inputs."""
    placeholders = {node.name: node for node in block.graph.nodes if node.op == "placeholder"}
    number = {call.name: position for position, call in enumerate(block.calls)}
    return [
        (position, [_UseInClass(role, user, number[user.name]) for role, user in _uses(node, False)])
        for position, item in enumerate(block.inputs)
        if item.kind in (InputKind.PARAMETER, InputKind.BUFFER)
        and (node := placeholders.get(item.placeholder)) is not None
    ]


def _uses(node: fx.Node, transposed: bool) -> list[tuple[Role, fx.Node]]:
    found: list[tuple[Role, fx.Node]] = []
    for user in node.users:
        name = operator_name(user)
        if name in _TRANSPARENT:
            found.extend(_uses(user, transposed))
        elif name in _TRANSPOSING and node.meta["val"].dim() == 2:
            found.extend(_uses(user, not transposed))
        elif user.op == "call_function":
            role = _role_in(user, node, name)
            found.append((_TRANSPOSED.get(role, role) if transposed else role, user))
    return found


def _role_in(user: fx.Node, node: fx.Node, name: str) -> Role:
    roles = _BY_OPERATOR.get(name)
    if roles is None or not isinstance(user.target, torch._ops.OpOverload):
        return Role.OTHER
    schema = (a.name for a in user.target._schema.arguments)
    given = dict(zip(schema, user.args, strict=False)) | dict(user.kwargs)
    role = next((role for argument, role in roles.items() if given.get(argument) is node), Role.OTHER)
    is_matrix = role in (Role.LINEAR_WEIGHT, Role.PRODUCT_WEIGHT)
    return Role.OTHER if is_matrix and node.meta["val"].dim() != 2 else role


def operator_name(node: fx.Node) -> str:
    """``linear`` for ``aten.linear.default``; empty for anything that is no aten operator."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::")
