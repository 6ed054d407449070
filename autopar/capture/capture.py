"""Capturing a model: one export, from which the chain of blocks for any micro-batch size is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import fx

from autopar.capture.class_key import class_key
from autopar.capture.dataflow import Dataflow, analyse
from autopar.capture.export import TRACED_SIZE, ExportedModel, export_model
from autopar.capture.extract import extract
from autopar.capture.fake_model import new_fake_mode
from autopar.capture.fingerprint import fingerprint
from autopar.capture.fused_dims import fused_dims
from autopar.capture.model_graph import Block, InputKind, ModelGraph, TensorSpec
from autopar.capture.pieces import choose_pieces
from autopar.capture.segments import Chain, divide
from autopar.capture.specialize import specialize
from autopar.capture.target import ModelSource
from autopar.errors import CaptureError


class Capture:
    """A captured model; :meth:`at` gives its graph for one micro-batch size.

    Attributes:
        source: what was captured.
        dtype: compute dtype of parameters and floating batch entries.
        dynamic: whether one export serves every micro-batch size; otherwise each size is exported for itself.
    """

    def __init__(self, source: ModelSource, dtype: torch.dtype, exported: ExportedModel | None) -> None:
        self.source = source
        self.dtype = dtype
        self._exported = exported
        self._graphs: dict[int, ModelGraph] = {}
        self._reference: tuple[Chain, Mapping[str, Mapping[int, int]], str] | None = None

    @property
    def dynamic(self) -> bool:
        """Whether one export serves every micro-batch size."""
        return self._exported is not None

    def at(self, micro_batch: int) -> ModelGraph:
        """The model for ``micro_batch`` samples, with static shapes; cached.

        Raises:
            CaptureError: the model cannot be traced at this size.
        """
        if micro_batch < 1:
            raise ValueError(f"micro_batch must be positive, not {micro_batch}")
        if micro_batch not in self._graphs:
            self._graphs[micro_batch] = self._specialized(micro_batch)
        return self._graphs[micro_batch]

    def _specialized(self, size: int) -> ModelGraph:
        exported = self._exported
        if exported is not None and exported.smallest <= size <= (exported.largest or size):
            chain, fused, digest = self._chain(exported)
            return _model_graph(exported, size, chain, fused, self.source.batch_dims, digest)
        static = export_model(self.source, self.dtype, size)
        chain, fused = _plan_chain(static, size)
        return _model_graph(static, size, chain, fused, self.source.batch_dims, self._chain_fingerprint())

    def _chain(self, exported: ExportedModel) -> tuple[Chain, Mapping[str, Mapping[int, int]], str]:
        """The division into blocks, made once so that it is the same for every size."""
        if self._reference is None:
            chain, fused = _plan_chain(exported, TRACED_SIZE)
            self._reference = chain, fused, _fingerprint(exported, chain, fused, self.source.batch_dims)
        return self._reference

    def _chain_fingerprint(self) -> str:
        exported = self._exported or export_model(self.source, self.dtype, TRACED_SIZE)
        return self._chain(exported)[2]


def capture(source: ModelSource, dtype: torch.dtype = torch.float32) -> Capture:
    """Captures a model in training mode, in the given compute dtype, without allocating its parameters.

    It is exported once with a dynamic batch. Where the model insists on a fixed size, each micro-batch size
    is exported.

    Raises:
        CaptureError: the model cannot be traced; the message names the user's line and a remedy.
        UsageError: the user's functions fail or do not fit together.
    """
    try:
        exported = export_model(source, dtype, None)
    except CaptureError as dynamic_failure:
        try:
            static = Capture(source, dtype, None)
            static.at(1)
        except CaptureError as static_failure:
            raise static_failure from dynamic_failure
        return static
    return Capture(source, dtype, exported if exported.symbols else None)


def _static_graph(exported: ExportedModel, size: int) -> tuple[fx.Graph, Dataflow, fx.Node]:
    graph = specialize(exported.graph, exported.symbols, size, new_fake_mode())
    flow = analyse(graph, {name: entry.kind for name, entry in exported.inputs.items()})
    loss = next(node for node in graph.nodes if node.name == exported.loss.name)
    return graph, flow, loss


def _plan_chain(exported: ExportedModel, size: int) -> tuple[Chain, Mapping[str, Mapping[int, int]]]:
    graph, flow, loss = _static_graph(exported, size)
    kinds = {name: entry.kind for name, entry in exported.inputs.items()}
    visited = {node.meta["module"] for node in graph.nodes if node.op == "call_function"}
    chain = divide(graph, flow, choose_pieces(exported.model, visited), kinds, loss)
    return chain, fused_dims(graph, exported.inputs)


def _model_graph(
    exported: ExportedModel,
    size: int,
    chain: Chain,
    fused: Mapping[str, Mapping[int, int]],
    batch_dims: Mapping[str, int],
    digest: str,
) -> ModelGraph:
    graph, flow, loss = _static_graph(exported, size)
    cut = extract(graph, chain, flow, exported.inputs, loss)
    parameters = {
        name: dataclasses.replace(spec, fused_dims=dict(fused[name])) if name in fused else spec
        for name, spec in exported.parameters.items()
    }
    skips = _skipping(cut.blocks)
    blocks = tuple(
        dataclasses.replace(block, class_key=class_key(block, parameters, exported.constants, skips))
        for block in cut.blocks
    )
    batch = {
        exported.inputs[node.name].source: TensorSpec(tuple(node.meta["val"].shape), node.meta["val"].dtype)
        for node in graph.nodes
        if node.op == "placeholder" and exported.inputs[node.name].kind is InputKind.BATCH
    }
    dims = {name: batch_dims.get(name, 0) for name in batch}
    return ModelGraph(
        size,
        blocks,
        parameters,
        exported.buffers,
        exported.constants,
        batch,
        dims,
        cut.values,
        loss.name,
        digest,
    )


def _skipping(blocks: tuple[Block, ...]) -> frozenset[str]:
    """Values read by a block other than the one after their producer."""
    producer = {name: block.index for block in blocks for name in block.outputs}
    return frozenset(
        entry.source
        for block in blocks
        for entry in block.inputs
        if entry.kind is InputKind.ACTIVATION and block.index != producer[entry.source] + 1
    )


def _fingerprint(
    exported: ExportedModel,
    chain: Chain,
    fused: Mapping[str, Mapping[int, int]],
    batch_dims: Mapping[str, int],
) -> str:
    model = _model_graph(exported, TRACED_SIZE, chain, fused, batch_dims, "")
    graph, _, _ = _static_graph(exported, TRACED_SIZE)
    return fingerprint(graph, chain, exported.inputs, model)
