"""What the code of a model may not do while it is traced, because the graph would keep no trace of it.

A graph holds operators, and autograd derives their gradients. A backward that the user wrote, a hook on a
gradient and a draw of Python's own random generator are none of them.
"""

from __future__ import annotations

import functools
import random
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from types import BuiltinMethodType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointFunction

from autopar.capture.own_backward import derives_itself
from autopar.capture.user_code import calling_line
from autopar.errors import CaptureError

_NUMPY = "numpy.random"
_METHODS = (MethodType, BuiltinMethodType)  # of the generator that a module keeps for everybody
_TRACED = ("torch.", "autopar.")  # packages whose own functions the exporter knows


@contextmanager
def forward_checks() -> Iterator[None]:
    """Inside, the user's code runs and is refused what would be lost; recompute that it asks for is left out.

    Raises:
        CaptureError: it names the user's line and a remedy.
    """
    with _apply_checked(), _hooks_refused(), _same_draws():
        yield


@contextmanager
def _apply_checked() -> Iterator[None]:
    apply, tracing = vars(Function)["apply"], threading.current_thread()

    def checked(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        if kind is CheckpointFunction:  # what is computed again is the plan's decision
            function, _preserve_rng_state, *inputs = args
            # As in torch, what it runs has gradients only if an input has.
            leads_on = any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
            with nullcontext() if leads_on else torch.no_grad():
                return function(*inputs)
        wants_gradient = torch.is_grad_enabled() and any(
            isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves((args, kwargs))
        )
        is_own = not kind.__module__.startswith(_TRACED) and threading.current_thread() is tracing
        if wants_gradient and is_own and not derives_itself(kind, args, apply.__func__):
            raise CaptureError(
                f"{_here()}the backward of {kind.__qualname__} (torch.autograd.Function) would be lost, and "
                "it is not what autograd derives from its forward: a plan derives all gradients; write the "
                "forward so that autograd derives the same, e.g. x + (f(x) - x).detach() for a "
                "straight-through estimate"
            )
        return apply.__func__(kind, *args, **kwargs)

    Function.apply = classmethod(checked)  # type: ignore[assignment]
    try:
        yield
    finally:
        Function.apply = apply  # type: ignore[method-assign]


@contextmanager
def _hooks_refused() -> Iterator[None]:
    names = ("register_hook", "register_post_accumulate_grad_hook")
    before = {name: getattr(Tensor, name) for name in names}

    def refused(register: Callable[..., Any]) -> Callable[..., Any]:
        def check(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not tensor.requires_grad:
                return register(tensor, *args, **kwargs)
            raise CaptureError(
                f"{_here()}hooks on gradients do not run under a plan; say it in the forward so that "
                "autograd derives it, e.g. a * x + (x - a * x).detach() for a gradient times a"
            )

        return check

    for name, register in before.items():
        setattr(Tensor, name, refused(register))
    try:
        yield
    finally:
        for name, register in before.items():
            setattr(Tensor, name, register)


@contextmanager
def _same_draws() -> Iterator[None]:
    before = _random_states()
    with _noted_draws(random) as python_lines, _noted_draws(np.random) as numpy_lines:
        yield
    for name, state in _random_states().items():
        if state != before[name]:
            lines = numpy_lines if name == _NUMPY else python_lines
            line = next(filter(None, lines), "")
            where = f"{line}: " if line else ""
            raise CaptureError(
                f"{where}the model's forward draws from the generator of {name}, and a plan would repeat "
                "what was drawn at capture in every step; draw with torch and choose with tensors, e.g. "
                "torch.where(torch.rand(()) < p, x, layer(x)), or set the probability to zero and do not draw"
            )


@contextmanager
def _noted_draws(module: ModuleType) -> Iterator[list[str]]:
    """Notes the user's lines that call functions of a random module by its name."""
    lines: list[str] = []
    before = {name: getattr(module, name) for name in module.__all__}
    draws = {name: function for name, function in before.items() if isinstance(function, _METHODS)}

    def noted(draw: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(draw)
        def call(*args: Any, **kwargs: Any) -> Any:
            lines.append(calling_line())
            return draw(*args, **kwargs)

        return call

    for name, draw in draws.items():
        setattr(module, name, noted(draw))
    try:
        yield lines
    finally:
        for name, draw in draws.items():
            setattr(module, name, draw)


def _random_states() -> dict[str, Hashable]:
    kind, keys, position, *_ = np.random.get_state()
    return {
        "Python's random": random.getstate(),
        _NUMPY: (kind, np.asarray(keys).tobytes(), position),
    }


def _here() -> str:
    line = calling_line()
    return f"{line}: " if line else "the model's forward: "
