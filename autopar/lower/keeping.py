"""Running a lowered block so that selective recomputation finds again what it keeps.

``keep_results`` makes of the program one that hands every kept result to its axis; a :class:`KeepingAxis`,
one for each run of a block, remembers them in the first run and gives them back in the second, which
``torch.utils.checkpoint`` starts in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from autopar.lower.axis import TensorAxis
from autopar.lower.selective import kept_kernels, kept_nodes, unneeded_nodes
from autopar.sharding.aliasing import pinned_nodes


def keep_results(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a lowered program, to be run with a ``KeepingAxis``, that hands over what is kept.

    Every node that is kept, or that communicates inside, becomes a call of the axis.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    kept, written = kept_nodes(module.graph), pinned_nodes(module.graph)
    unneeded = unneeded_nodes(module.graph)
    axis = next(iter(module.graph.nodes))
    for node in module.graph.nodes:
        new = values[node] = graph.node_copy(node, lambda old: values[old])
        if node in unneeded:
            assert callable(node.target)
            new.args = (values[axis], *new.args)
            new.target = _skipping(node.target)
            continue
        communicates = any(not transfer.backward for transfer in node.meta.get("collectives") or ())
        if node in kept or (communicates and node.name not in written):
            assert callable(node.target)
            new.args = (values[axis], *new.args)
            new.target = _keeping(node.target)
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)


def _keeping(function: Callable[..., Any]) -> Callable[..., Any]:
    def keep(axis: KeepingAxis, *args: Any, **kwargs: Any) -> Any:
        return axis.keep(function, args, kwargs)

    return keep


def _skipping(function: Callable[..., Any]) -> Callable[..., Any]:
    def skip(axis: KeepingAxis, *args: Any, **kwargs: Any) -> Any:
        return axis.skip(function, args, kwargs)

    return skip


class KeepingAxis:
    """The tensor axis of one run of one block, which keeps results the first time and gives them back after.

    Collectives are remembered here, and so are not run again; kernels are remembered beneath autograd, so
    that the second run notes for the backward pass what it needs without computing. The backward passes of
    collectives, which come after, run for real.

    Args:
        axis: what communicates.
    """

    def __init__(self, axis: TensorAxis) -> None:
        self._axis = axis
        self._results: list[Tensor] = []
        self._contexts: list[tuple[AbstractContextManager[Any], AbstractContextManager[Any]]] = []
        self._is_first = True
        self._next_result = self._next_context = 0
        self._is_keeping = self._is_skipping = False

    @property
    def rank(self) -> int:
        """Position on the axis."""
        return self._axis.rank

    @property
    def size(self) -> int:
        """Number of ranks on the axis."""
        return self._axis.size

    @contextmanager
    def run(self) -> Iterator[None]:
        """Around each run of the block's program: the first keeps, the second is given."""
        self._next_result = self._next_context = 0
        try:
            yield
        finally:
            self._is_first = False

    def keep(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls ``function`` and keeps its result, or calls it without computing what was kept."""
        self._is_keeping = True
        try:
            with self._kernels(function):
                return function(*args, **kwargs)
        finally:
            self._is_keeping = False

    def skip(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Calls ``function``, whose result nobody needs the second time: then autograd notes it, but nothing
        is computed or sent.
        """
        if self._is_first:
            return function(*args, **kwargs)
        self._is_skipping = True
        try:
            with _Empty(kept_kernels(function)):
                return function(*args, **kwargs)
        finally:
            self._is_skipping = False

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks."""
        return self._kept(self._axis.all_reduce, tensor)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """Maximum over the ranks."""
        return self._kept(self._axis.all_reduce_max, tensor)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Tensors of all ranks, stacked."""
        if self._is_skipping:
            return tensor.new_empty((self.size, *tensor.shape))
        return self._kept(self._axis.all_gather, tensor)

    def begin_all_gather(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Of the axis itself: this is asked for in backward passes."""
        return self._axis.begin_all_gather(tensor)

    def reduce_scatter(self, pieces: Tensor) -> Tensor:
        """This rank's piece of the sum."""
        return self._kept(self._axis.reduce_scatter, pieces)

    def all_to_all(self, pieces: Tensor) -> Tensor:
        """One piece from every rank, stacked."""
        return self._kept(self._axis.all_to_all, pieces)

    def own_stream(self, device: torch.device) -> AbstractContextManager[None]:
        """Of the axis itself: random numbers are drawn again."""
        return self._axis.own_stream(device)

    def _kernels(self, function: Callable[..., Any]) -> AbstractContextManager[Any]:
        """Inside, results of kernels are kept, or given back instead of computed."""
        kernels = kept_kernels(function)
        if not kernels:
            return nullcontext()
        if self._is_first:
            self._contexts.append(create_selective_checkpoint_contexts(_policy(kernels)))  # type: ignore[no-untyped-call]
        self._next_context += 1
        keeping, giving = self._contexts[self._next_context - 1]
        return keeping if self._is_first else giving

    def _kept(self, collective: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        if not self._is_keeping:
            return collective(tensor)
        if self._is_first:
            self._results.append(collective(tensor).detach())
        self._next_result += 1
        return self._results[self._next_result - 1].detach()


class _Empty(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, some kernels return empty tensors of the right shape.

    Args:
        kernels: names of the aten kernels; each takes tensors and returns one.
    """

    def __init__(self, kernels: frozenset[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kernels = kernels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten" or func.overloadpacket.__name__ not in self._kernels:
            return func(*args, **(kwargs or {}))
        device = next(argument.device for argument in args if isinstance(argument, Tensor))
        shapes = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
        return torch.empty_like(func(*shapes, **(kwargs or {})), device=device)


def _policy(kernels: frozenset[str]) -> Callable[..., CheckpointPolicy]:
    def policy(_: Any, kernel: OpOverload, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        is_kept = kernel.namespace == "aten" and kernel.overloadpacket.__name__ in kernels
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return policy
