"""What capture yields: the model as a chain of blocks, each a self-contained fx graph with static shapes.

Values that flow between blocks have one global name each (the fx node's name in the whole graph). A block's
graph has a placeholder for everything it reads and returns a tuple of the values that later blocks read; the
last block returns the loss. Nodes that depend on no parameter (masks, rotary tables, position ids) are
repeated inside each block that reads them and never cross a boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import fx

from autopar.capture.deferred import made_when_read
from autopar.capture.module_output import ModuleOutput


class InputKind(StrEnum):
    """What a placeholder of a block stands for."""

    ACTIVATION = "activation"  # a value computed by an earlier block
    BATCH = "batch"  # an entry of the user's batch
    PARAMETER = "parameter"
    BUFFER = "buffer"
    CONSTANT = "constant"  # a tensor that the capture lifted out of the code


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_elements(self) -> int:
        """Product of the shape."""
        return torch.Size(self.shape).numel()

    @property
    def num_bytes(self) -> int:
        """Bytes when stored densely."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """A parameter of the model under its canonical name.

    Attributes:
        name: original qualified name; of tied parameters, the first in ``named_parameters`` order.
        spec: whole (unsharded) shape and compute dtype.
        requires_grad: False for frozen parameters.
        aliases: the other names of the same tensor (tie group).
        fused_dims: dim -> number g of equal parts fused along that dim (QKV: ``{0: 3}``), read off the graph;
            sharding such a dim shards inside each part.
    """

    name: str
    spec: TensorSpec
    requires_grad: bool = True
    aliases: tuple[str, ...] = ()
    fused_dims: Mapping[int, int] | None = None


@dataclass(frozen=True, slots=True)
class BlockInput:
    """One placeholder of a block's graph, in the order of the placeholders.

    Attributes:
        placeholder: node name in the block's graph.
        kind: where the value comes from.
        source: global value name, batch key, canonical parameter name, buffer name or constant name.
    """

    placeholder: str
    kind: InputKind
    source: str


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a block's graph.

    Attributes:
        name: of the node.
        module: qualified name of the user's module that computed it.
        operator_key: ``module:operator#ordinal``; empty for what the capture added.
    """

    name: str
    module: str
    operator_key: str


def calls_of(nodes: Iterable[fx.Node]) -> tuple[Call, ...]:
    """The calls among the nodes of a graph, in order."""
    return tuple(
        Call(node.name, node.meta.get("module", ""), node.meta.get("operator_key", ""))
        for node in nodes
        if node.op == "call_function"
    )


@made_when_read("graph")
@dataclass(frozen=True)
class Block:
    """A piece of the model between two neighbouring cut points.

    Attributes:
        index: position in the chain.
        name: as plan files write it, e.g. ``blocks.3``, ``wte``, ``loss``.
        graph: self-contained; every node has ``meta["val"]`` (a fake tensor of static shape, or a tuple of
            them), ``meta["module"]`` (qualified name of the user's module that computed it),
            ``meta["source_line"]`` (``file:line`` or ""), ``meta["operator_key"]``
            (``module:operator#ordinal``) and ``meta["no_grad"]`` (bool). The output node returns a tuple.
            It may be ``deferred``.
        inputs: one per placeholder, in order.
        outputs: global names of the values returned, in order.
        class_key: structural hash; blocks with equal keys have identical graphs up to names of parameters and
            values, and the same calls in the same order.
        known_calls: those of the graph, where they are known without it.
    """

    index: int
    name: str
    graph: fx.Graph
    inputs: tuple[BlockInput, ...]
    outputs: tuple[str, ...]
    class_key: str
    known_calls: tuple[Call, ...] | None = None

    @property
    def calls(self) -> tuple[Call, ...]:
        """The ``call_function`` nodes of the graph, in order."""
        return self.known_calls if self.known_calls is not None else calls_of(self.graph.nodes)


@dataclass(frozen=True, slots=True)
class ModelGraph:
    """The whole model for one static micro-batch size.

    Attributes:
        micro_batch: samples, dim 0 of the batch entries unless ``batch_dims`` says otherwise; None there:
            the entry is the same for all samples.
        blocks: the chain, in execution order.
        parameters: canonical name -> spec, in the model's order.
        buffers: name -> spec; persistent or not, mutated in place by blocks (BatchNorm statistics).
        constants: name -> tensor lifted by the capture.
        batch: entries of the batch -> spec.
        values: global name of every value that crosses a block boundary -> spec.
        loss: global name of the scalar loss, returned by the last block.
        fingerprint: hash of the structure, equal for equal models on every machine, independent of the
            micro-batch.
        output: what the user's module returns; None in graphs made by hand.
    """

    micro_batch: int
    blocks: tuple[Block, ...]
    parameters: Mapping[str, ParameterSpec]
    buffers: Mapping[str, TensorSpec]
    constants: Mapping[str, torch.Tensor]
    batch: Mapping[str, TensorSpec]
    batch_dims: Mapping[str, int | None]
    values: Mapping[str, TensorSpec]
    loss: str
    fingerprint: str
    output: ModuleOutput | None = None
