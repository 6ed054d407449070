"""Which modules of a model have equal structure, and so may turn out to be copies of each other."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor, nn

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_FEWEST_TENSORS = 3  # of a module without submodules; smaller ones are as quick to trace as to compare


def equal_modules(model: nn.Module) -> list[list[nn.Module]]:
    """Groups of two or more modules that agree in everything except values and plain attributes.

    They have the same classes, names of submodules, training flags, and specs of parameters and buffers.
    Modules with hooks inside, or with attribute access of their own, are in no group.
    """
    numbers: dict[Hashable, int] = {}
    known: dict[nn.Module, int | None] = {}

    def number(module: nn.Module) -> int | None:
        if module not in known:
            known[module] = None  # while it is looked at; a cycle has no structure
            known[module] = _number(module)
        return known[module]

    def _number(module: nn.Module) -> int | None:
        children = []
        for name, child in module._modules.items():
            if child is not None:
                inner = number(child)
                if inner is None or _has_hooks(child):
                    return None
            children.append((name, None if child is None else inner))
        if not _is_plain(module):
            return None
        tensors = (
            tuple((name, _spec(tensor)) for name, tensor in registered.items())
            for registered in (module._parameters, module._buffers)
        )
        key = (type(module), module.training, tuple(children), *tensors)
        return numbers.setdefault(key, len(numbers))

    groups: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        found = number(module)
        if found is not None and _is_worth_it(module):
            groups.setdefault(found, []).append(module)
    return [modules for modules in groups.values() if len(modules) > 1]


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name, None) for name in _HOOKS)


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule | torch.fx.GraphModule) or "forward" in module.__dict__:
        return False
    own_access = {"__getattr__", "__getattribute__", "__setattr__", "__delattr__"}
    return not any(own_access & set(vars(kind)) for kind in type(module).__mro__ if kind not in _ROOTS)


def _spec(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    return (type(tensor), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad)


def _is_worth_it(module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False  # never called
    return bool(module._modules) or len(module._parameters) >= _FEWEST_TENSORS


_ROOTS = (nn.Module, object)
