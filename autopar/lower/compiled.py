"""Compiling a lowered program with torch.compile: what lies between its collectives, run by run.

Collectives, and what else a program asks of its axis, stay as they are, so that nothing depends on how a
compiler orders communication. Runs of operators between them are compiled with static shapes. Runs that are
equal (the blocks of a transformer) are compiled once.

On a CPU the compiler lays images out with channels last wherever there is a convolution, and lays them out
again at both ends of a run. So that runs agree, convolutions are given images with channels last, which their
results and gradients keep from one run to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from autopar.capture.operator_facts import is_random
from autopar.lower.relu_by_result import relu

Compile = Callable[[fx.GraphModule, bool], Callable[..., Any]]
"""Compiles a graph; the flag says whether it draws random numbers."""

_aten = torch.ops.aten
_CONVOLUTIONS = {_aten.conv2d.default, _aten.conv2d.padding, _aten.convolution.default}
# Samples, channels, height, width.
_IMAGE_DIMS = 4
# A run of views alone has nothing to gain.
_LEAST_OPERATORS = 2


@dataclass
class Compiler:
    """Compiles programs, each distinct run of operators once.

    Args:
        compile_run: default: torch.compile with its default backend. Random numbers are drawn as without
            it, so that masks of dropout do not change.
        channels_last: whether images of convolutions have their channels last.

    Attributes:
        num_runs: distinct runs so far.
    """

    compile_run: Compile | None = None
    channels_last: bool = False
    _compiled: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def num_runs(self) -> int:
        """Distinct runs that were compiled."""
        return len(self._compiled)

    def program(self, program: fx.GraphModule) -> fx.GraphModule:
        """A copy of a lowered program that calls compiled runs.

        Args:
            program: placeholders are the axis (and a queue of weight gradients), then tensors.
        """
        asked = _readers_of_non_tensors(program.graph)
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        run: list[fx.Node] = []
        for node in program.graph.nodes:
            if node.op == "call_function" and node not in asked:
                run.append(node)
                continue
            self._close(run, graph, values)
            run = []
            values[node] = graph.node_copy(node, values.__getitem__)
        graph.lint()
        return fx.GraphModule(torch.nn.Module(), graph)

    def _close(self, run: Sequence[fx.Node], graph: fx.Graph, values: dict[fx.Node, fx.Node]) -> None:
        """Adds a run to the program: one call of a compiled function, or its operators if they are few."""
        if len(run) < _LEAST_OPERATORS:
            for node in run:
                values[node] = graph.node_copy(node, values.__getitem__)
            return
        inside = set(run)
        inputs = tuple(dict.fromkeys(x for node in run for x in node.all_input_nodes if x not in inside))
        outputs = [node for node in run if any(user not in inside for user in node.users)]
        body = _body(run, inputs, outputs, channels_last=self.channels_last)
        function = self._function(body, inputs, any(is_random(node) for node in run))
        call = graph.call_function(function, tuple(values[x] for x in inputs))
        for index, node in enumerate(outputs):
            new = graph.call_function(_item, (call, index))
            new.meta["val"] = node.meta["val"]
            values[node] = new

    def _function(self, body: fx.GraphModule, inputs: Iterable[fx.Node], draws: bool) -> Callable[..., Any]:
        key = f"{body.code}\n{[_form(x.meta['val']) for x in inputs]}"
        if key not in self._compiled:
            compiled = (self.compile_run or _torch_compile)(body, draws)

            def compiled_run(*values: Any) -> Any:
                return compiled(*values)

            self._compiled[key] = compiled_run
        return self._compiled[key]


def _torch_compile(body: fx.GraphModule, draws: bool) -> Callable[..., Any]:
    options: dict[str, str | int | bool | Callable[..., Any]] = {"fallback_random": True} if draws else {}
    return torch.compile(body, fullgraph=True, dynamic=False, options=options)


def _item(results: Sequence[Any], index: int) -> Any:
    return results[index]


def _readers_of_non_tensors(graph: fx.Graph) -> frozenset[fx.Node]:
    """Nodes that use the axis or the queue: placeholders without a value."""
    plain = [node for node in graph.nodes if node.op == "placeholder" and node.meta.get("val") is None]
    return frozenset(user for node in plain for user in node.users)


def _body(
    run: Sequence[fx.Node], inputs: Sequence[fx.Node], outputs: Sequence[fx.Node], *, channels_last: bool
) -> fx.GraphModule:
    """The run as a graph of its own, with names that depend on positions alone."""
    graph = fx.Graph()
    values = {node: graph.placeholder(f"x{index}") for index, node in enumerate(inputs)}
    ends = set(outputs)
    for index, node in enumerate(run):
        args = [fx.map_arg(argument, values.__getitem__) for argument in node.args]
        if channels_last and _reads_images(node):
            args[0] = graph.call_method("contiguous", (args[0],), {"memory_format": torch.channels_last})
        values[node] = graph.create_node(
            node.op,
            relu if node.target is _aten.relu.default and node in ends else node.target,
            tuple(args),
            fx.map_arg(dict(node.kwargs), values.__getitem__),
            name=f"y{index}",
        )
    graph.output(tuple(values[node] for node in outputs))
    return fx.GraphModule(torch.nn.Module(), graph)


def _reads_images(node: fx.Node) -> bool:
    if node.target not in _CONVOLUTIONS:
        return False
    images = node.args[0]
    return isinstance(images, fx.Node) and images.meta["val"].dim() == _IMAGE_DIMS


def _form(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), str(value.dtype)
    if isinstance(value, tuple | list):
        return [_form(each) for each in value]
    return value
