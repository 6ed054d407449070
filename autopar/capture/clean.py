"""Cleaning of an exported graph: what only guards or re-describes goes, plain tensor operators remain.

* regions under ``no_grad`` (and ``autocast(enabled=False)``) are inlined; what flows into a ``no_grad``
  region is detached, so that the graph means the same without the region;
* assertions and casts, slices and dropouts that do nothing are dropped, ``view`` becomes ``reshape`` (a
  local shard may not be contiguous);
* in-place operators on fresh values become ordinary ones; those on buffers, and on values seen through views,
  stay;
* what took the default dtype while tracing says which one that was.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument

from autopar.capture.expand import expand_repeats
from autopar.capture.model_graph import InputKind
from autopar.capture.operator_facts import aliased_arguments, argument_value, has_effect, is_cast
from autopar.capture.user_code import user_line
from autopar.errors import CaptureError

aten = torch.ops.aten

_ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
_IDENTITIES = {aten.alias.default, aten.lift_fresh.default}
_CHOICES_WITH_A_SCALAR = {aten.where.ScalarSelf, aten.where.ScalarOther}
_RENAMED = {
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    aten.lift_fresh_copy.default: aten.clone.default,
}


def clean(
    module: fx.GraphModule,
    kinds: Mapping[str, InputKind],
    withheld: Sequence[Sequence[fx.Node]] = (),
) -> fx.Graph:
    """Cleans the graph of an exported program and returns it; ``meta['no_grad']`` is set on every node.

    Args:
        kinds: of each placeholder, by name.
        withheld: placeholders of parameters that repeated calls name by a number.

    Raises:
        CaptureError: the model switches autocast on for itself.
        ExpansionError: repeated calls cannot be expanded.
    """
    graph = module.graph
    for node in graph.nodes:
        node.meta["no_grad"] = False
        for source in node.all_input_nodes:  # the exporter forgets readers of what ends a region
            source.users.setdefault(node)
    _inline_regions(module, kinds)
    expand_repeats(graph, withheld)
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        _pin_dtype(node)
        if node.target in _ASSERTIONS or "_assert" in getattr(node.target, "__name__", ""):
            graph.erase_node(node)
        elif node.target in _IDENTITIES or _is_noop(node):
            _replace(node, node.args[0])
        elif node.target in _RENAMED:
            node.target = _RENAMED[node.target]
    _make_functional(graph, kinds)
    graph.eliminate_dead_code(is_impure_node=has_effect)
    graph.lint()
    return graph


def _pin_dtype(node: fx.Node) -> None:
    """Says the dtype that ``torch.zeros(n)`` or ``indices / 2`` had while tracing.

    Otherwise what is made of sizes, integers or truths would take the default of the process that runs it.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return
    if not isinstance(node.target, torch._ops.OpOverload) or is_cast(node):
        return
    operands = [source for source in node.all_input_nodes if isinstance(source.meta.get("val"), torch.Tensor)]
    if not operands:
        if argument_value(node, "dtype", value.dtype) is None:
            node.kwargs = {**node.kwargs, "dtype": value.dtype}
    elif any(_says_dtype(source.meta["val"]) for source in operands):
        return
    elif node.target is aten.where.Scalar:
        _choose_between_tensors(node, value)
    elif torch.Tag.pointwise in node.target.tags or node.target in _CHOICES_WITH_A_SCALAR:
        for source in operands:
            if source is not argument_value(node, "condition", None):
                _convert(node, source, value.dtype)


def _says_dtype(operand: torch.Tensor) -> bool:
    """Whether a result takes its dtype from the operand, and not from the default."""
    return operand.is_floating_point() or operand.is_complex()


def _convert(node: fx.Node, source: fx.Node, dtype: torch.dtype) -> None:
    """Lets ``node`` read ``source``, integers or truths, as floating numbers."""
    with node.graph.inserting_before(node):
        converted = node.graph.call_function(aten.to.dtype, (source, dtype))
    converted.meta = {**node.meta, "val": source.meta["val"].to(dtype)}
    node.replace_input_with(source, converted)


def _choose_between_tensors(node: fx.Node, value: torch.Tensor) -> None:
    condition, *scalars = node.args
    tensors = []
    for scalar in scalars:
        with node.graph.inserting_before(node):
            options: dict[str, Argument] = {"dtype": value.dtype, "device": value.device}
            tensor = node.graph.call_function(aten.full.default, ([], scalar), options)
        tensor.meta = {**node.meta, "val": value.new_empty(())}
        tensors.append(tensor)
    node.target, node.args = aten.where.self, (condition, *tensors)


def _replace(node: fx.Node, value: Argument) -> None:
    assert isinstance(value, fx.Node)
    node.replace_all_uses_with(value)
    node.graph.erase_node(node)


def _is_noop(node: fx.Node) -> bool:
    value, source = node.meta.get("val"), node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(value, torch.Tensor):
        return False
    before = source.meta.get("val")
    if not isinstance(before, torch.Tensor):
        return False
    if is_cast(node):
        return before.dtype == value.dtype
    if node.target is aten.dropout.default:
        return bool(node.args[1] == 0 or not node.args[2])
    if node.target is aten.slice.Tensor:
        start, end = (*node.args[2:4], None, None)[:2]
        return start in (None, 0) and end in (None, sys.maxsize) and node.args[4:] in ((), (1,))
    return False


def _inline_regions(module: fx.GraphModule, kinds: Mapping[str, InputKind]) -> None:
    graph = module.graph
    while True:
        region = next((n for n in graph.nodes if n.op == "call_function" and _region_kind(n)), None)
        if region is None:
            break
        _inline(module, region, kinds)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)


def _region_kind(node: fx.Node) -> str:
    name = getattr(node.target, "__name__", "")
    return name if name in ("wrap_with_set_grad_enabled", "wrap_with_autocast") else ""


def _inline(module: fx.GraphModule, region: fx.Node, kinds: Mapping[str, InputKind]) -> None:
    graph = module.graph
    if _region_kind(region) == "wrap_with_autocast":
        _device, _dtype, enabled, _cache, body, *inputs = region.args
        if enabled:
            inside = getattr(module, str(body.target)).graph.nodes if isinstance(body, fx.Node) else ()
            lines = (user_line(node.meta.get("stack_trace") or "") for node in (region, *inside))
            line = next(filter(None, lines), "")
            raise CaptureError(
                f"{line or 'the model'}: autocast is switched on inside the model; "
                "remove it, and say `precision: bf16` in the plan instead"
            )
        no_grad = False
    else:
        enabled, body, *inputs = region.args
        no_grad = not enabled
    assert isinstance(body, fx.Node)
    inner = getattr(module, str(body.target)).graph
    for name, submodule in getattr(module, str(body.target)).named_children():
        module.add_module(f"{body.target}_{name}", submodule)  # a region inside the region
    environment: dict[fx.Node, Any] = {}
    placeholders = [n for n in inner.nodes if n.op == "placeholder"]
    results: Any = ()
    with graph.inserting_before(region):
        for placeholder, value in zip(placeholders, inputs, strict=True):
            environment[placeholder] = _detached(graph, value, kinds, inner) if no_grad else value
        for node in inner.nodes:
            if node.op == "output":
                results = fx.map_arg(node.args[0], lambda n: environment[n])
            elif node.op != "placeholder":
                copy = graph.node_copy(node, lambda n: environment[n])
                if node.op == "get_attr":
                    copy.target = f"{body.target}_{node.target}"
                copy.meta["no_grad"] = no_grad or region.meta["no_grad"]
                environment[node] = copy
    for user in list(region.users):
        assert user.target is operator.getitem and isinstance(user.args[1], int)
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(region)


def _detached(graph: fx.Graph, value: Any, kinds: Mapping[str, InputKind], inner: fx.Graph) -> Any:
    """A node that hands ``value`` over without gradient; what carries none (integers, buffers) as it is.

    It belongs where the first operator of ``inner`` does, the region.
    """
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    without_gradient = value.op == "placeholder" and kinds[value.name] is not InputKind.PARAMETER
    if without_gradient or not value.meta["val"].is_floating_point():
        return value
    node = graph.call_function(aten.detach.default, (value,))
    first = next((n for n in inner.nodes if n.op == "call_function"), value)
    node.meta.update({**value.meta, **first.meta, "val": value.meta["val"], "no_grad": True})
    return node


def _make_functional(graph: fx.Graph, kinds: Mapping[str, InputKind]) -> None:
    """Rewrites in-place operators on values that nothing else can see, entries of the batch among them."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        functional = _functional_form(node)
        if functional is None:
            continue
        target = node.args[0]
        if not isinstance(target, fx.Node) or _may_alias(target, kinds):
            continue
        readers = [user for user in target.users if user is not node]
        if any(_shares_storage(user, target) for user in readers):
            continue
        node.target = functional
        for reader in readers:
            if order[reader] > order[node]:
                reader.replace_input_with(target, node)


def _functional_form(node: fx.Node) -> torch._ops.OpOverload | None:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    name = node.target._schema.name.split("::")[1]
    if not name.endswith("_") or name.endswith("__") or not node.target._schema.is_mutable:
        return None
    packet = getattr(aten, name[:-1], None)
    found: torch._ops.OpOverload | None = getattr(packet, node.target._overloadname, None)
    return found


def _may_alias(node: fx.Node, kinds: Mapping[str, InputKind]) -> bool:
    """Whether the value is part of the model's state or a view of something."""
    if node.op == "placeholder":
        return kinds[node.name] is not InputKind.BATCH
    return any(_shares_storage(node, source) for source in node.all_input_nodes)


def _shares_storage(node: fx.Node, source: fx.Node) -> bool:
    """Whether the node's result may share storage with ``source``."""
    if node.target is operator.getitem:
        producer = node.args[0]
        assert isinstance(producer, fx.Node)
        return source in aliased_arguments(producer)
    return source in aliased_arguments(node)
