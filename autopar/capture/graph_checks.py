"""What a cleaned graph may not hold: written parameters, tensors without values, sizes read off values."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor

from autopar.capture.capture_errors import READS_VALUE
from autopar.capture.model_graph import BlockInput, InputKind
from autopar.capture.node_origin import module_of, source_line_of
from autopar.capture.operator_facts import aliased_arguments, mutated_arguments
from autopar.errors import CaptureError

# Tensors that the exporter came across and that no module holds under a name.
_NAMELESS = re.compile(r"(^|\.)lifted_tensor_\d+$")
_READS_DATA = re.compile(r"\.data\b")
_TAKES_GRADIENT = re.compile(r"\bgrad\(|\.backward\(|\b(jacobian|hessian|jvp|vjp)\b")
_PRODUCTS = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"})


def check_writes(graph: fx.Graph, inputs: Mapping[str, BlockInput]) -> None:
    """Refuses a graph that writes into a parameter: only the optimiser does.

    Raises:
        CaptureError: it names the parameter.
    """
    seen: dict[fx.Node, str] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and inputs[node.name].kind is InputKind.PARAMETER:
            seen[node] = inputs[node.name].source
        for source in aliased_arguments(node) if node.op == "call_function" else ():
            if source in seen:
                seen[node] = seen[source]
        for written in mutated_arguments(node) if node.op == "call_function" else ():
            if written in seen:
                raise _written(node, seen[written])


def _written(node: fx.Node, parameter: str) -> CaptureError:
    if "embedding_renorm" in str(node.target):
        what = f"max_norm of the embedding changes the parameter '{parameter}' in the forward"
        remedy = "leave max_norm out, and limit the norm of the rows"
    else:
        what, remedy = f"the forward changes the parameter '{parameter}'", "update it"
    return CaptureError(
        f"{_where(node)}: {what}, and only the optimiser changes parameters under a plan; "
        f"{remedy} in the training script after the optimiser's step"
    )


def check_constants(
    graph: fx.Graph, inputs: Mapping[str, BlockInput], constants: Mapping[str, object]
) -> dict[str, torch.Tensor]:
    """The constants of a graph, each with its value.

    Raises:
        CaptureError: one has no value, since the model was built without memory.
    """
    found: dict[str, torch.Tensor] = {}
    for name, value in constants.items():
        if isinstance(value, FakeTensor) or not isinstance(value, torch.Tensor):
            raise _without_value(name, graph, inputs)
        found[name] = value
    return found


def _without_value(name: str, graph: fx.Graph, inputs: Mapping[str, BlockInput]) -> CaptureError:
    if not _NAMELESS.search(name):
        return CaptureError(
            f"the model holds the tensor '{name}' as a plain attribute, so its value is lost when "
            "the model is built without memory; register it as a buffer: "
            f"self.register_buffer('{name.rpartition('.')[2]}', ..., persistent=False)"
        )
    placeholders = (node for node in graph.nodes if node.op == "placeholder")
    node = next(n for n in placeholders if inputs[n.name].kind is InputKind.CONSTANT and _is(n, name, inputs))
    readers = sorted(node.users, key=list(graph.nodes).index)
    line = next(filter(None, map(source_line_of, readers)), "")
    path, _, number = line.rpartition(":")
    text = linecache.getline(path, int(number)) if path else ""
    where = line or next(filter(None, map(module_of, readers)), "the model's forward")
    data = (
        "`.data` of a parameter (say .detach(); what changes parameters belongs after the optimiser's step)"
    )
    gradient = "a gradient taken in the forward (torch.autograd.grad; write the derivative out in operators)"
    kept = "a tensor kept in a list or an object that is no module (register it as a buffer)"
    if _READS_DATA.search(text):
        causes = data
    elif _TAKES_GRADIENT.search(text):
        causes = gradient
    else:
        causes = f"{kept}, {data}, or {gradient}"
    shape = tuple(size if isinstance(size, int) else "batch" for size in node.meta["val"].shape)
    return CaptureError(
        f"{where}: the model cannot be captured: it reads a tensor of shape {shape} that is no input, "
        f"parameter, buffer or result of an operator: {causes}"
    )


def _is(node: fx.Node, name: str, inputs: Mapping[str, BlockInput]) -> bool:
    return inputs[node.name].source == name


def check_operators(graph: fx.Graph) -> None:
    """Refuses transforms of functions, and products of operands whose dtypes no plan makes equal.

    Raises:
        CaptureError: it names the user's line.
    """
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if getattr(node.target, "__module__", "").startswith("torch._functorch"):
            raise CaptureError(
                f"{_where(node)}: the model cannot be captured: torch.vmap and the other transforms of "
                "torch.func are no operators; write the batched computation out (torch.einsum, torch.bmm, "
                "or a loop)"
            )
        name = getattr(node.target, "__name__", "").partition(".")[0]
        if name in _PRODUCTS or name.startswith("conv"):
            _check_product(node)


def _check_product(node: fx.Node) -> None:
    values = [source.meta.get("val") for source in node.all_input_nodes]
    dtypes = {v.dtype for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()}
    if len(dtypes) > 1:
        names = " and ".join(sorted(str(dtype) for dtype in dtypes))
        raise CaptureError(
            f"{_where(node)}: the model cannot be captured: it multiplies {names}; the plan's precision is "
            "the dtype of every parameter, whatever build_model() says, so cast to that of a parameter "
            "(x.to(self.weight.dtype)) and not to a fixed one"
        )


def check_sizes(graph: fx.Graph, symbols: Collection[sympy.Symbol], loss: Callable[..., Any] | None) -> None:
    """Refuses sizes and numbers that depend on the values of tensors.

    Args:
        loss: the user's, to which belongs what runs outside of the model.

    Raises:
        CaptureError: it names the user's line.
    """
    for node in graph.nodes:
        value = node.meta["val"]
        sizes = value.shape if isinstance(value, torch.Tensor) else (value,)
        for size in sizes:
            if not isinstance(size, torch.SymInt | torch.SymBool | torch.SymFloat):
                continue
            if size.node.expr.free_symbols <= set(symbols):
                continue
            where = node.meta["source_line"] or node.meta["module"] or _place(loss)
            if not isinstance(value, torch.Tensor):
                raise CaptureError(f"{where}: the model cannot be captured: {READS_VALUE}")
            raise CaptureError(
                f"{where}: the model cannot be captured: the size of '{node.name}' depends on the values of "
                "tensors, and a plan needs static shapes; mask instead of selecting, or pad to a fixed size"
            )


def _where(node: fx.Node) -> str:
    return source_line_of(node) or module_of(node) or "the model's forward"


def _place(loss: Callable[..., Any] | None) -> str:
    code = getattr(loss, "__code__", None)
    if code is None:
        return "the model's forward" if loss is None else "loss()"
    return f"{code.co_filename}:{code.co_firstlineno}: loss()"
