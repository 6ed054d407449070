"""A block that consists of one operator, to prove its rules by execution."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import map_arg

from autopar.capture.fake_model import new_fake_mode
from autopar.capture.model_graph import Block, BlockInput, InputKind


@dataclass(frozen=True)
class TensorArgument:
    """Stands for a tensor in the arguments of a case."""

    shape: tuple[int, ...]
    make: Callable[[tuple[int, ...], torch.Generator], Tensor]
    kind: InputKind = InputKind.ACTIVATION


def real(*shape: int) -> TensorArgument:
    return TensorArgument(shape, lambda s, g: torch.randn(s, generator=g, dtype=torch.float64))


def positive(*shape: int) -> TensorArgument:
    return TensorArgument(shape, lambda s, g: torch.rand(s, generator=g, dtype=torch.float64) * 0.8 + 0.1)


def fixed(*shape: int) -> TensorArgument:
    """Positive numbers that take no gradient: class weights and the like."""
    return TensorArgument(shape, positive(*shape).make, InputKind.CONSTANT)


def probabilities(*shape: int) -> TensorArgument:
    return TensorArgument(shape, lambda s, g: torch.rand(s, generator=g, dtype=torch.float64).softmax(1))


def integers(high: int, *shape: int, low: int = 0) -> TensorArgument:
    return TensorArgument(shape, lambda s, g: torch.randint(low, high, s, generator=g))


def booleans(*shape: int) -> TensorArgument:
    return TensorArgument(shape, lambda s, g: torch.rand(s, generator=g) > 0.5)


def causal(*shape: int) -> TensorArgument:
    """A mask in which no row is empty."""

    def make(s: tuple[int, ...], g: torch.Generator) -> Tensor:
        return (torch.rand(s, generator=g) > 0.5) | (torch.arange(s[-1]) == 0)

    return TensorArgument(shape, make)


def labels(high: int, *shape: int, ignored: int = -100) -> TensorArgument:
    """Class indices of which about a third are ignored."""

    def make(s: tuple[int, ...], g: torch.Generator) -> Tensor:
        index = torch.randint(0, high, s, generator=g)
        return index.masked_fill(torch.rand(s, generator=g) < 0.3, ignored)

    return TensorArgument(shape, make)


def statistic(size: int) -> TensorArgument:
    """A running mean or variance."""
    return TensorArgument(
        (size,), lambda s, g: torch.rand(s, generator=g, dtype=torch.float64) + 0.5, InputKind.BUFFER
    )


@dataclass(frozen=True)
class Case:
    """One call of an operator."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def id(self) -> str:
        def text(value: Any) -> str:
            if isinstance(value, TensorArgument):
                return "x".join(map(str, value.shape)) or "scalar"
            if isinstance(value, (list, tuple)):
                return f"[{' '.join(map(text, value))}]"
            return str(value)

        given = [text(a) for a in self.args] + [f"{k}={text(v)}" for k, v in self.kwargs.items()]
        return f"{self.target._schema.name.split('::')[1]}.{self.target._overloadname}({' '.join(given)})"


def case(target: Any, *args: Any, **kwargs: Any) -> Case:
    return Case(target, args, kwargs)


@dataclass(frozen=True)
class SingleOperator:
    """The block of a case, with example inputs in the order of its placeholders."""

    block: Block
    node: fx.Node
    inputs: tuple[Tensor, ...]


def build(case: Case, seed: int = 0) -> SingleOperator:
    """One placeholder a tensor, one call, one ``getitem`` for each result of a tuple."""
    generator = torch.Generator().manual_seed(seed)
    graph = fx.Graph()
    fake = new_fake_mode().from_tensor
    entries: list[BlockInput] = []
    values: list[Tensor] = []

    def place(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [place(item) for item in value]
        if not isinstance(value, TensorArgument):
            return value
        tensor = value.make(value.shape, generator)
        node = graph.placeholder(f"input_{len(values)}")
        node.meta["val"] = fake(tensor)
        entries.append(BlockInput(node.name, value.kind, node.name))
        values.append(tensor)
        return node

    args = tuple(place(argument) for argument in case.args)
    kwargs = {name: place(value) for name, value in case.kwargs.items()}
    node = graph.call_function(case.target, args, kwargs)
    environment = dict(zip(graph.nodes, values, strict=False))
    real_args, real_kwargs = map_arg((args, kwargs), lambda n: environment[n].clone())
    result = case.target(*real_args, **real_kwargs)
    if isinstance(result, Tensor):
        node.meta["val"] = fake(result)
        outputs = [node]
    else:
        node.meta["val"] = tuple(fake(item) for item in result)
        outputs = []
        for index, item in enumerate(result):
            element = graph.call_function(operator.getitem, (node, index))
            element.meta["val"] = fake(item)
            outputs.append(element)
    graph.output(tuple(outputs))
    names = tuple(output.name for output in outputs)
    return SingleOperator(Block(0, "block", graph, tuple(entries), names, ""), node, tuple(values))
