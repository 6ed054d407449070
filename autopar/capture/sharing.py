"""Tracing equal layers once: what is proven about a call, so that the trace of another may stand for it.

While a model is traced, the first call of a layer that has equals is watched and its operators are marked;
a later call becomes one operator if it is *proven* that its trace would be a copy of the first. Proven means:

* the two modules have equal trees of submodules: classes, names, training flags, no hooks inside; parameters
  and buffers agree in name, shape, dtype, ``requires_grad`` and in which are the same tensor;
* they are called with equal arguments: tensors of equal symbolic shapes, strides, dtypes and
  ``requires_grad``, in the same places and the same where they were the same; other values equal; and under
  the same grad mode, autocast state and default dtype;
* every attribute of a module that the first call read has an equal value in the second, and so do the
  class attributes, global names, closure variables and default arguments that the Python functions of the
  user mention which ran in it. What cannot be compared counts as different;
* the first call wrote no attribute, changed nothing of what it read (a list that grows, a counter), drew
  nothing from Python's random generator, made no constant tensors, and read no tensor except its arguments,
  its parameters and its buffers.

Not followed: the memory addresses of objects (``id``), files, clocks and the environment, state inside C
extensions, and closure variables of plain functions that are rebound between two calls.

In doubt, and wherever anything unexpected is met, the call is traced in full.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from autopar.capture.descriptions import Described, UnclearError
from autopar.capture.observation import Observation, observe
from autopar.capture.repeat_operators import NONE, enter, leave, repeat
from autopar.capture.structure import equal_modules
from autopar.capture.traced_call import Arguments, Results, nodes_between, self_contained
from autopar.capture.withheld import Withheld

_MOST_VARIANTS = 4  # traces kept of one group of equal modules: layers that alternate


@dataclass(slots=True)
class _Trace:
    """A call that was traced in full and can be repeated."""

    index: int
    described: Described
    arguments: Arguments
    surroundings: Hashable
    observation: Observation
    results: Results
    writes_own: bool

    def stands_for(self, described: Described, arguments: Arguments, surroundings: Hashable) -> bool:
        return (
            self.surroundings == surroundings
            and self.arguments.description == arguments.description
            and list(self.described.modules) == list(described.modules)
            and self.observation.holds_for(described)
        )


@dataclass(slots=True)
class _Group:
    """Modules of equal structure."""

    traces: list[_Trace] = field(default_factory=list)
    num_attempts: int = 0


class _Sharing:
    def __init__(self, model: nn.Module, in_place: Collection[str]) -> None:
        self._groups: dict[int, tuple[nn.Module, _Group]] = {}
        equal = equal_modules(model)
        self.withheld = Withheld(model, equal, in_place)
        for modules in equal:
            group = _Group()
            for module in modules:
                self._groups[id(module.__dict__)] = (module, group)
        self._watching = False
        self._num_calls = 0
        self._called: set[int] = set()

    def classes(self) -> set[type[nn.Module]]:
        return {type(module) for module, _ in self._groups.values()}

    def call(
        self,
        kind: type,
        forward: Callable[..., Any],
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        base, group = self._groups.get(id(module.__dict__), (None, None))
        if base is None or group is None or self._watching or type(base) is not kind:
            return forward(module, *args, **kwargs)
        again = id(base) in self._called
        self._called.add(id(base))
        number, surroundings = self.withheld.number(base), _surroundings()
        with self.withheld.shown(number):
            call = _described(base, args, kwargs)
            # Without gradients, what is handed over is detached, and placeholders are not.
            if call is not None and (number is None or torch.is_grad_enabled()):
                for trace in group.traces:
                    if not (again and trace.writes_own) and trace.stands_for(*call, surroundings):
                        return _repeated(trace, call[1], number)
        if number is not None:
            self.withheld.want(number)
        if call is None or group.num_attempts >= _MOST_VARIANTS:
            return forward(module, *args, **kwargs)
        group.num_attempts += 1
        return self._watch(group, *call, surroundings, lambda: forward(module, *args, **kwargs))

    def _watch(
        self,
        group: _Group,
        described: Described,
        arguments: Arguments,
        surroundings: Hashable,
        call: Callable[[], Any],
    ) -> Any:
        index = self._num_calls
        self._num_calls += 1
        inputs, own = arguments.inputs, arguments.own
        observation = Observation(described)
        enter(inputs, own, index)
        self._watching = True
        try:
            with observe(observation):
                output = call()
        finally:
            self._watching = False
        results = Results.of(output, inputs, own)
        if results is None or not observation.repeatable or not arguments.unchanged(described):
            return output
        leave(results.made, inputs, index)
        mode = get_proxy_mode()
        nodes = nodes_between(mode.tracer.graph, index) if mode is not None else None
        if nodes is not None and self_contained(nodes):
            writes = any(_writes(node) for node in nodes)
            group.traces.append(
                _Trace(index, described, arguments, surroundings, observation, results, writes)
            )
        return output


def _described(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Described, Arguments] | None:
    """A call of a module, to be compared with others; None where an argument cannot be compared."""
    own = [
        *(tensor for _, tensor in module.named_parameters(remove_duplicate=False)),
        *(tensor for _, tensor in module.named_buffers(remove_duplicate=False)),
    ]
    try:
        inputs = Arguments.tensors_of(args, kwargs)
        described = Described(module, own, inputs)
        return described, Arguments.of(described, inputs, own, args, kwargs)
    except UnclearError:
        return None


def _repeated(trace: _Trace, arguments: Arguments, number: int | None) -> Any:
    """What a call returns that one traced before stands for.

    Args:
        number: of the layer, where its parameters are withheld.
    """
    like, inputs, own = trace.results.made, arguments.inputs, arguments.own
    visible, withheld = (own, NONE) if number is None else ([], number)
    made = repeat(inputs, visible, like, withheld, trace.index) if like else []
    return trace.results.rebuild(made, inputs, own)


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _surroundings() -> Hashable:
    """What of torch's state a trace depends on."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
    )


@contextmanager
def share_equal_layers(model: nn.Module, in_place: Collection[str] = ()) -> Iterator[Withheld]:
    """Inside, a traced call of ``model`` records equal calls of equal layers once (see the module's text).

    The ``forward`` of the classes concerned is replaced meanwhile, and parameters are withheld.

    Args:
        in_place: layers whose parameters are not withheld.
    """
    sharing = _Sharing(model, in_place)
    before: dict[type[nn.Module], Any] = {}
    try:
        for kind in sharing.classes():
            before[kind] = vars(kind).get("forward")
            kind.forward = _watched(sharing, kind)
        with sharing.withheld.away():
            yield sharing.withheld
    finally:
        for kind, forward in before.items():
            if forward is None:
                del kind.forward
            else:
                kind.forward = forward


def _watched(sharing: _Sharing, kind: type[nn.Module]) -> Callable[..., Any]:
    original = kind.forward

    # The name appears in the stack traces of nodes, where it separates the frames inside the layer.
    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return sharing.call(kind, original, self, args, kwargs)

    return forward
