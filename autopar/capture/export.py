"""Exporting the model with its loss: one graph with a symbolic batch, or a fixed one where it must be."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind as SignatureKind

from autopar.capture.capture_errors import explain_export_failure
from autopar.capture.causal_masks import no_causal_shortcut
from autopar.capture.clean import clean
from autopar.capture.expand import ExpansionError
from autopar.capture.fake_model import build_fake_model, fake_batch, new_fake_mode
from autopar.capture.forward_checks import forward_checks
from autopar.capture.graph_checks import check_constants, check_operators, check_sizes, check_writes
from autopar.capture.model_checks import check_batch
from autopar.capture.model_graph import BlockInput, InputKind, ParameterSpec, TensorSpec
from autopar.capture.module_output import ModuleOutput
from autopar.capture.node_origin import module_of, source_line_of
from autopar.capture.operator_facts import has_effect
from autopar.capture.output_marks import batch_sizes, mark_output
from autopar.capture.own_numbers import ChangedNumbers, watched_numbers
from autopar.capture.precise_buffers import keep_precise
from autopar.capture.sharing import share_equal_layers
from autopar.capture.size_conditions import hold_at, size_conditions
from autopar.capture.size_of_one import comparisons_with_one, squeezes_the_batch
from autopar.capture.target import ModelSource
from autopar.capture.withheld import EVERYTHING, Withheld
from autopar.capture.wrapper import MODULE_PREFIX, LossModule, wrap_model
from autopar.errors import AutoparError

# Layers whose parameters turn out to be wanted, before all are left in their place.
_MOST_IN_PLACE = 1

# The size that stands for "any" while tracing: a prime, so that it is unlikely to equal another size of the
# model.
TRACED_SIZE = 7


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """A cleaned graph of the whole model and what its placeholders are.

    Attributes:
        model: the user's module, on fake tensors.
        graph: of the loss; nodes have the meta data that ``model_graph.Block`` documents.
        inputs: placeholder -> what it stands for; parameters under their canonical names.
        symbols: the batch size in shapes of the graph; empty for a static export.
        smallest: least batch size for which the graph holds.
        largest: greatest one, or None.
        conditions: what else the batch size must fulfil (see ``size_conditions``).
        parameters: canonical name -> spec, without ``fused_dims``.
        buffers: name -> spec.
        constants: name -> tensor.
        output: of the user's module.
        changes: numbers that the forward changes in the module's attributes.
    """

    model: nn.Module
    graph: fx.Graph
    inputs: Mapping[str, BlockInput]
    symbols: frozenset[sympy.Symbol]
    smallest: int
    largest: int | None
    conditions: tuple[sympy.Basic, ...]
    parameters: Mapping[str, ParameterSpec]
    buffers: Mapping[str, TensorSpec]
    constants: Mapping[str, torch.Tensor]
    output: ModuleOutput
    changes: ChangedNumbers

    def holds_for(self, size: int) -> bool:
        """Whether the graph is that of the model for a batch of ``size``."""
        in_range = self.smallest <= size and (self.largest is None or size <= self.largest)
        return in_range and hold_at(self.conditions, size)

    @property
    def loss(self) -> fx.Node:
        """The node that computes the loss."""
        output = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        loss: fx.Node = output.all_input_nodes[0]
        return loss


def export_model(
    source: ModelSource, dtype: torch.dtype, size: int | None, share_layers: bool = True
) -> ExportedModel:
    """Exports ``source`` in training mode, with a dynamic batch where ``size`` is None, else for that size.

    With ``share_layers``, equal layers are traced once (see ``sharing``); the result is the same.

    Raises:
        CaptureError: the model cannot be traced; the message names the user's line.
        UsageError: the user's functions do not fit together.
    """
    found = _export(source, dtype, size, share_layers)
    if found.changes:
        _check_next_forward(found, source, dtype, size, share_layers)
    return found


def _check_next_forward(
    found: ExportedModel, source: ModelSource, dtype: torch.dtype, size: int | None, share_layers: bool
) -> None:
    after = dataclasses.replace(source, build_model=found.changes.set_after(source.build_model))
    try:
        second = _export(after, dtype, size, share_layers)
    except AutoparError:  # what else it keeps between two forwards is not known
        return
    found.changes.check_unused(found.graph, second.graph)


def _export(source: ModelSource, dtype: torch.dtype, size: int | None, share_layers: bool) -> ExportedModel:
    in_place: set[str] = set()
    while share_layers:
        try:
            found = _exported(source, dtype, size, in_place)
        except ExpansionError:
            break
        if isinstance(found, ExportedModel):
            return found
        in_place.add(found if len(in_place) < _MOST_IN_PLACE else EVERYTHING)
    found = _exported(source, dtype, size, None)
    assert isinstance(found, ExportedModel)
    return found


def _exported(
    source: ModelSource, dtype: torch.dtype, size: int | None, in_place: Collection[str] | None
) -> ExportedModel | str:
    """The export; or, where parameters were withheld that are wanted, the name of their layer.

    Args:
        in_place: layers whose parameters are not withheld; None: every layer is traced.
    """
    mode = new_fake_mode()
    model = build_fake_model(source.build_model, mode, dtype)
    example = source.example_batch(size or TRACED_SIZE)
    check_batch(example)
    batch = fake_batch(example, mode, dtype)
    wrapper = wrap_model(model, source.loss, tuple(batch), keeps_output=True).train()
    dims = {name: source.batch_dims.get(name, 0) for name in batch}
    dynamic = {name: {} if dim is None else {dim: Dim.DYNAMIC} for name, dim in dims.items()}
    changes: list[ChangedNumbers] = []
    withheld = Withheld(wrapper, ())
    sharing = nullcontext(withheld) if in_place is None else share_equal_layers(wrapper, in_place)
    try:
        with (
            mode,
            _quiet(),
            sharing as withheld,
            no_causal_shortcut(wrapper),
            comparisons_with_one() as decided,
        ):
            wrapper.around = partial(_checked, withheld, model, changes)
            program = torch.export.export(
                wrapper, (), batch, strict=False, dynamic_shapes=None if size else dynamic
            )
    except Exception as error:
        if withheld.wanted is not None:
            return withheld.wanted
        if isinstance(error, AutoparError):
            raise
        raise explain_export_failure(error) from error
    if withheld.wanted is not None:
        return withheld.wanted
    least_size = 2 if decided else 1
    return _describe(program, wrapper, withheld, source.loss, least_size, changes[-1])


@contextmanager
def _checked(withheld: Withheld, model: nn.Module, changes: list[ChangedNumbers]) -> Iterator[None]:
    with withheld.tracing(), forward_checks(), watched_numbers(model, changes):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings, logs and prints: they are about tracing; the model's own come again when it runs."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # Of a graph that it cannot trace, torch prints every line.
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _describe(
    program: ExportedProgram,
    wrapper: LossModule,
    withheld: Withheld,
    loss: Callable[..., Any] | None,
    least_size: int,
    changes: ChangedNumbers,
) -> ExportedModel:
    model = wrapper.module
    conditions = size_conditions(program)
    canonical, parameters = _parameters(model)
    inputs, held = _inputs(program, canonical)
    own = _put_back(withheld, program, wrapper, inputs, canonical)
    graph = clean(program.graph_module, {name: entry.kind for name, entry in inputs.items()}, own)
    check_operators(graph)
    check_writes(graph, inputs)
    constants = check_constants(graph, inputs, held)
    marks = _end_with_loss(graph)
    precise = keep_precise(graph, inputs)
    buffers = {
        name: TensorSpec(tuple(buffer.shape), torch.float32 if name in precise else buffer.dtype)
        for name, buffer in model.named_buffers()
    }
    _annotate(graph)
    sizes = batch_sizes(graph, inputs)
    symbols = frozenset(symbol for size in sizes for symbol in size.free_symbols)
    smallest, largest = _range(program, symbols, 2 if squeezes_the_batch(graph) else least_size)
    check_sizes(graph, symbols, loss)
    assert wrapper.last_output is not None and wrapper.last_output.form is not None
    output = mark_output(graph, marks, wrapper.last_output.form, inputs, sizes)
    wrapper.last_output.tensors = ()
    return ExportedModel(
        model,
        graph,
        inputs,
        symbols,
        smallest,
        largest,
        conditions,
        parameters,
        buffers,
        constants,
        output,
        changes,
    )


def _end_with_loss(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Leaves the loss as the only result, without what served others alone; gives the nodes of the others."""
    end = next(node for node in reversed(graph.nodes) if node.op == "output")
    loss, *marks = end.args[0]
    end.args = ((loss,),)
    graph.eliminate_dead_code(is_impure_node=has_effect)
    return tuple(marks)


def _parameters(model: nn.Module) -> tuple[dict[str, str], dict[str, ParameterSpec]]:
    """Any name of a parameter or buffer -> its canonical name; and the parameters by canonical name."""
    first: dict[int, str] = {}
    canonical: dict[str, str] = {}
    aliases: dict[str, list[str]] = {}
    tensors = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        canonical[name] = first.setdefault(id(tensor), name)
        if canonical[name] != name:
            aliases.setdefault(canonical[name], []).append(name)
    parameters = {
        name: ParameterSpec(
            name,
            TensorSpec(tuple(parameter.shape), parameter.dtype),
            parameter.requires_grad,
            tuple(aliases.get(name, ())),
        )
        for name, parameter in model.named_parameters()
    }
    return canonical, parameters


def _inputs(
    program: ExportedProgram, canonical: Mapping[str, str]
) -> tuple[dict[str, BlockInput], dict[str, object]]:
    inputs: dict[str, BlockInput] = {}
    constants: dict[str, object] = {}
    batch_spec = program.call_spec.in_spec
    keys = iter(batch_spec.child(1).context if batch_spec else ())
    for spec in program.graph_signature.input_specs:
        placeholder, target = spec.arg.name, spec.target or ""
        if spec.kind is SignatureKind.USER_INPUT:
            inputs[placeholder] = BlockInput(placeholder, InputKind.BATCH, next(keys))
        elif spec.kind is SignatureKind.CONSTANT_TENSOR:
            name = target.removeprefix(MODULE_PREFIX)
            inputs[placeholder] = BlockInput(placeholder, InputKind.CONSTANT, name)
            constants[name] = program.constants[target]
        else:
            kind = InputKind.PARAMETER if spec.kind is SignatureKind.PARAMETER else InputKind.BUFFER
            name = canonical[target.removeprefix(MODULE_PREFIX)]
            inputs[placeholder] = BlockInput(placeholder, kind, name)
    return inputs, constants


def _put_back(
    withheld: Withheld,
    program: ExportedProgram,
    wrapper: LossModule,
    inputs: dict[str, BlockInput],
    canonical: Mapping[str, str],
) -> list[list[fx.Node]]:
    """Gives withheld parameters their placeholders and describes these; gives those of each layer."""
    graph = program.graph_module.graph
    nodes = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    existing = {
        str(spec.target): nodes[spec.arg.name]
        for spec in program.graph_signature.input_specs
        if spec.kind is SignatureKind.PARAMETER
    }
    added, own = withheld.put_back(graph, wrapper, existing)
    for parameter, node in added.items():
        name = canonical[parameter.removeprefix(MODULE_PREFIX)]
        inputs[node.name] = BlockInput(node.name, InputKind.PARAMETER, name)
    return own


def _annotate(graph: fx.Graph) -> None:
    """Names operators in their order; sets their meta data and drops what the exporter wrote besides.

    The names do not depend on what tracing and cleaning left out.
    """
    ordinals: dict[tuple[str, str], int] = {}
    names = {node.name for node in graph.nodes if node.op == "placeholder"}
    counts: dict[str, int] = {}
    for node in graph.nodes:
        meta = {
            "val": node.meta.get("val"),
            "module": module_of(node),
            "source_line": source_line_of(node),
            "operator_key": "",
            "no_grad": node.meta.get("no_grad", False),
        }
        if node.op == "call_function":
            name = getattr(node.target, "__name__", str(node.target)).partition(".")[0]
            if isinstance(meta["val"], torch.Tensor | list | tuple):
                ordinal = ordinals.get((meta["module"], name), 0)
                ordinals[meta["module"], name] = ordinal + 1
                meta["operator_key"] = f"{meta['module']}:{name}#{ordinal}"
            node.name = _unused(name, counts, names)
        node.meta = meta


def _unused(name: str, counts: dict[str, int], names: set[str]) -> str:
    while True:
        number = counts.get(name, 0)
        counts[name] = number + 1
        candidate = f"{name}_{number}" if number else name
        if candidate not in names:
            names.add(candidate)
            return candidate


def _range(
    program: ExportedProgram, symbols: frozenset[sympy.Symbol], smallest: int
) -> tuple[int, int | None]:
    largest = None
    for symbol, allowed in program.range_constraints.items():
        if symbol not in symbols:
            continue
        if allowed.lower > 2:  # 2 says no more than that sizes 0 and 1 were set aside while tracing
            smallest = max(smallest, int(allowed.lower))
        if allowed.upper.is_finite and allowed.upper < 2**31:
            largest = min(largest or int(allowed.upper), int(allowed.upper))
    return smallest, largest
