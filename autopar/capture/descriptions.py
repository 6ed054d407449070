"""Writing down the state of Python objects, so that two layers, or one before and after, can be compared.

A description is a hashable value. Equal descriptions mean: equal plain values, equal containers of such, the
same object otherwise. What belongs to the layer itself (its submodules, parameters, inputs) is described by
its place in the layer, so that the corresponding things of two layers have equal descriptions.
"""

from __future__ import annotations

import collections
import contextvars
import dataclasses
import enum
import functools
import inspect
import random
import re
import sys
import types
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.user_code import is_user_file

_DEEPEST = 8  # nested containers and objects that are followed
_OBJECT_DEPTH = 3  # from here on an object is only itself
_MOST_ITEMS = 20_000  # of containers, in one description

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
_THEMSELVES = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ModuleType,
    torch.dtype,
    torch.layout,
    torch.memory_format,
    enum.Enum,
    re.Pattern,
)
_OPAQUE_STATE = (random.Random, torch.Generator)


class UnclearError(Exception):
    """The state of an object cannot be written down: iterators, generators, huge containers."""


class Described:
    """Describes values as seen from one layer.

    Attributes:
        root: the layer.
        modules: those in the layer, by their path in it.
    """

    def __init__(self, root: nn.Module, own: Sequence[Tensor], inputs: Sequence[Tensor] = ()) -> None:
        self.root = root
        # Tracing wraps modules in proxies that share the attributes.
        self.modules: dict[str, nn.Module] = dict(root.named_modules())
        self._paths = {id(module.__dict__): name for name, module in self.modules.items()}
        self._tensors = {id(tensor): ("own", index) for index, tensor in enumerate(own)}
        for index, tensor in enumerate(inputs):
            self._tensors.setdefault(id(tensor), ("input", index))
        # An id is that of an object only while the object lives.
        self._kept: list[Any] = [*own, *inputs]
        self._num_items = 0

    def of(self, value: Any) -> Hashable:
        """The description of ``value``.

        Raises:
            UnclearError: it holds something whose state cannot be read.
        """
        self._num_items = 0
        try:
            return self._of(value, 0)
        except UnclearError:
            raise
        except Exception as error:  # attributes of the user's objects may be code
            raise UnclearError(f"a {type(value).__name__} cannot be read") from error

    def place(self, module: nn.Module) -> tuple[str, Hashable]:
        """Where a module is in the layer; outside, the module itself."""
        attributes = object.__getattribute__(module, "__dict__")
        if id(attributes) in self._paths:
            return ("module", self._paths[id(attributes)])
        self._kept.append(attributes)
        return ("outside module", id(attributes))

    def _of(self, value: Any, depth: int) -> Hashable:
        self._num_items += 1
        if depth > _DEEPEST or self._num_items > _MOST_ITEMS:
            raise UnclearError("too deep or too large to compare")
        kind = type(value)
        if kind in _PLAIN:
            return (kind, repr(value))
        if isinstance(value, Tensor):
            return self._tensors.get(id(value)) or self._itself(value)
        if isinstance(value, nn.Module):
            return self.place(value)
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return (kind, value.node.expr)
        if isinstance(value, _THEMSELVES):
            return self._itself(value)
        return self._container(value, depth) or self._object(value, depth)

    def _itself(self, value: Any) -> Hashable:
        self._kept.append(value)
        return ("object", id(value))

    def _container(self, value: Any, depth: int) -> Hashable:
        kind = type(value)
        parts: Hashable
        if isinstance(value, types.MethodType):
            return (kind, self._of(value.__func__, depth + 1), self._of(value.__self__, depth + 1))
        if isinstance(value, functools.partial):
            parts = tuple(self._of(part, depth + 1) for part in (value.func, value.args, value.keywords))
        elif isinstance(value, slice):
            parts = tuple(self._of(part, depth + 1) for part in (value.start, value.stop, value.step))
        elif isinstance(value, list | tuple | collections.deque):
            parts = tuple(self._of(item, depth + 1) for item in value)
        elif isinstance(value, dict | types.MappingProxyType):
            parts = tuple((self._of(k, depth + 1), self._of(v, depth + 1)) for k, v in value.items())
        elif isinstance(value, set | frozenset):
            parts = frozenset(self._of(item, depth + 1) for item in value)
        elif isinstance(value, range | torch.device | int | float | str | bytes):  # or subclasses
            parts = repr(value)
        elif dataclasses.is_dataclass(value):
            parts = ()
        else:
            return None
        return (kind, parts, self._attributes(value, depth))

    def _object(self, value: Any, depth: int) -> Hashable:
        kind = type(value)
        if hasattr(kind, "__next__") or isinstance(value, _OPAQUE_STATE):
            raise UnclearError(f"the state of a {kind.__name__} cannot be read")
        if isinstance(value, contextvars.ContextVar):
            return (self._itself(value), self._of(value.get(None), depth + 1))
        if kind.__module__.partition(".")[0] == "numpy" and hasattr(value, "tobytes"):
            return (kind, str(value.dtype), value.shape, value.tobytes())
        if depth >= _OBJECT_DEPTH or not written_by_user(kind):
            return self._itself(value)
        return (self._itself(value), self._attributes(value, depth))

    def _attributes(self, value: Any, depth: int) -> Hashable:
        found: dict[str, Any] = dict(getattr(value, "__dict__", {}))
        if written_by_user(type(value)) or dataclasses.is_dataclass(value):
            for base in type(value).__mro__:
                slots = base.__dict__.get("__slots__", ())
                for name in (slots,) if isinstance(slots, str) else slots:
                    if hasattr(value, name) and name not in ("__dict__", "__weakref__"):
                        found[name] = getattr(value, name)
        return tuple((name, self._of(item, depth + 1)) for name, item in found.items())


def written_by_user(kind: type | types.ModuleType) -> bool:
    """Whether a class or module is neither torch's nor the standard library's, nor built in."""
    module = kind if isinstance(kind, types.ModuleType) else sys.modules.get(kind.__module__)
    if module is None:
        return True
    file = getattr(module, "__file__", None)
    return file is not None and file.endswith(".py") and is_user_file(file)


def stored(module: nn.Module, name: str) -> tuple[str, Any]:
    """What reading ``module.name`` finds, without running code: (how it is stored, the value)."""
    attributes: Mapping[str, Any] = object.__getattribute__(module, "__dict__")
    if name in attributes:
        return "attribute", attributes[name]
    for kind in ("_parameters", "_buffers", "_modules"):
        if name in attributes.get(kind, ()):
            return kind, None  # what is registered was compared before
    return "class attribute", inspect.getattr_static(type(module), name, None)
