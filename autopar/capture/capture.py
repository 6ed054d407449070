"""Capturing a model: one export, from which the chain of blocks for any micro-batch size is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from autopar.capture.batch_norm_sizes import check_batch_norm_sizes
from autopar.capture.blocks import build_blocks, crossing_values
from autopar.capture.class_key import class_keys
from autopar.capture.dataflow import analyse
from autopar.capture.export import TRACED_SIZE, ExportedModel, export_model
from autopar.capture.fingerprint import fingerprint
from autopar.capture.fused_dims import fused_dims
from autopar.capture.model_graph import InputKind, ModelGraph, ParameterSpec, TensorSpec
from autopar.capture.pieces import choose_pieces
from autopar.capture.recipe import BlockRecipe, write_recipes
from autopar.capture.segments import divide
from autopar.capture.size_conditions import USUAL_SIZES
from autopar.capture.specialize import Specializer, specialize
from autopar.capture.target import ModelSource
from autopar.errors import CaptureError


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An export with its division into blocks, from which graphs of static shapes are built."""

    exported: ExportedModel
    recipes: tuple[BlockRecipe, ...]
    class_keys: tuple[str, ...]
    parameters: Mapping[str, ParameterSpec]
    fingerprint: str


class Capture:
    """A captured model; :meth:`at` gives its graph for one micro-batch size.

    Attributes:
        source: what was captured.
        dtype: compute dtype of parameters and floating batch entries.
    """

    def __init__(
        self, source: ModelSource, dtype: torch.dtype, dynamic: _Prepared | None, share_layers: bool = True
    ) -> None:
        self.source = source
        self.dtype = dtype
        self._share_layers = share_layers
        self._dynamic = dynamic
        self._graphs: dict[int, ModelGraph] = {}
        self._fingerprint = dynamic.fingerprint if dynamic else ""
        self._changes = str(dynamic.exported.changes) if dynamic else ""

    @property
    def dynamic(self) -> bool:
        """Whether one export serves every micro-batch size; otherwise each size is exported for itself."""
        return self._dynamic is not None

    @property
    def unused_counters(self) -> str:
        """Numbers that the forward changes in attributes of modules and does not compute with; or empty."""
        return self._changes

    def at(self, micro_batch: int) -> ModelGraph:
        """The model for ``micro_batch`` samples, with static shapes; cached.

        Raises:
            CaptureError: the model cannot be traced, or does not work, at this size.
        """
        if micro_batch < 1:
            raise ValueError(f"micro_batch={micro_batch} is not positive")
        if micro_batch not in self._graphs:
            graph = self._build(micro_batch)
            check_batch_norm_sizes(graph.blocks, micro_batch)
            self._graphs[micro_batch] = graph
        return self._graphs[micro_batch]

    def _build(self, size: int) -> ModelGraph:
        if self._dynamic is not None and self._dynamic.exported.holds_for(size):
            return _model_graph(self._dynamic, size, self.source.batch_dims, self._fingerprint)
        prepared = _prepare(
            export_model(self.source, self.dtype, size, self._share_layers), size, self.source.batch_dims
        )
        self._changes = str(prepared.exported.changes)
        if (
            not self._fingerprint
        ):  # of the same size always, so that it does not depend on which is asked for first
            reference = export_model(self.source, self.dtype, TRACED_SIZE, self._share_layers)
            self._fingerprint = _prepare(reference, TRACED_SIZE, self.source.batch_dims).fingerprint
        return _model_graph(prepared, size, self.source.batch_dims, self._fingerprint)


def capture(source: ModelSource, dtype: torch.dtype = torch.float32, share_layers: bool = True) -> Capture:
    """Captures a model in training mode, in the given compute dtype, without allocating its parameters.

    It is exported once with a dynamic batch. Where the model insists on a fixed size, or the graph of one
    size is not that of the others (see ``size_conditions``), each size is exported. Equal layers are traced
    once (see ``sharing``); ``share_layers=False`` traces each, for comparison.

    Raises:
        CaptureError: the model cannot be traced; the message names the user's line and a remedy.
        UsageError: the user's functions fail or do not fit together.
    """
    try:
        exported = export_model(source, dtype, None, share_layers)
    except CaptureError as dynamic_failure:
        static = Capture(source, dtype, None, share_layers)
        try:
            static.at(TRACED_SIZE)
        except CaptureError as static_failure:
            raise static_failure from dynamic_failure
        return static
    if not exported.symbols or not _holds_for_usual_sizes(exported):
        return Capture(source, dtype, None, share_layers)
    return Capture(source, dtype, _prepare(exported, TRACED_SIZE, source.batch_dims))


def _holds_for_usual_sizes(exported: ExportedModel) -> bool:
    sizes = (size for size in USUAL_SIZES if size >= exported.smallest)
    return all(exported.holds_for(size) for size in sizes if size <= (exported.largest or size))


def _prepare(exported: ExportedModel, size: int, batch_dims: Mapping[str, int | None]) -> _Prepared:
    """Divides an export into blocks; the division is made at one size and holds for all."""
    graph = specialize(exported.graph, Specializer(exported.symbols, size))
    kinds = {name: entry.kind for name, entry in exported.inputs.items()}
    flow = analyse(graph, kinds)
    loss = next(node for node in graph.nodes if node.name == exported.loss.name)
    visited = {node.meta["module"] for node in graph.nodes if node.op == "call_function"}
    chain = divide(graph, flow, choose_pieces(exported.model, visited), kinds, loss)
    fused = fused_dims(graph, exported.inputs)
    parameters = {
        name: dataclasses.replace(spec, fused_dims=fused[name]) if name in fused else spec
        for name, spec in exported.parameters.items()
    }
    recipes = write_recipes(graph, chain, flow, exported.inputs, loss)
    keys = class_keys(exported.graph, recipes, exported.symbols, parameters, exported.constants)
    return _Prepared(exported, recipes, keys, parameters, fingerprint(exported, graph, chain, batch_dims))


def _model_graph(
    prepared: _Prepared, size: int, batch_dims: Mapping[str, int | None], fingerprint_: str
) -> ModelGraph:
    exported = prepared.exported
    specializer = Specializer(exported.symbols, size)
    blocks = build_blocks(exported.graph, prepared.recipes, prepared.class_keys, specializer)
    batch = {}
    for node in exported.graph.nodes:
        if node.op == "placeholder" and exported.inputs[node.name].kind is InputKind.BATCH:
            value = specializer.value(node.meta["val"])
            batch[exported.inputs[node.name].source] = TensorSpec(tuple(value.shape), value.dtype)
    return ModelGraph(
        micro_batch=size,
        blocks=blocks,
        parameters=prepared.parameters,
        buffers=exported.buffers,
        constants=exported.constants,
        batch=batch,
        batch_dims={name: batch_dims.get(name, 0) for name in batch},
        values=crossing_values(blocks),
        loss=exported.loss.name,
        fingerprint=fingerprint_,
        output=exported.output,
    )
