"""Watching one call of a module: all that its code reads besides its arguments, and whether it leaves traces.

Recorded are the attributes of modules that are read, and for each Python function of the user that runs, the
global names and closure variables that its code mentions. Attribute writes, changes of what was read and
draws from Python's random generator are noticed.
"""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from autopar.capture.descriptions import Described, UnclearError, stored, written_by_user
from autopar.capture.user_code import is_user_file

# Compared as the structure of the module, before any call.
_STRUCTURE = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
# They run while torch traces, whatever the model.
_TRACERS_LIBRARIES = frozenset({"sympy", "mpmath", "networkx", "numpy", "typing_extensions"})


class Observation:
    """What one call read, from which another layer's call can be compared with it.

    Attributes:
        repeatable: whether nothing was seen that a second call might do differently.
        codes: of the functions that began to run.
    """

    def __init__(self, described: Described) -> None:
        self.repeatable = True
        self._described = described
        # What was read, as a way to read it again for any layer -> its description.
        self._seen: dict[Hashable, tuple[Callable[[Described], Hashable], Hashable]] = {}
        self.codes: set[types.CodeType] = set()
        self._nested: set[types.CodeType] = set()
        self._classes = _classes_of(described.root)
        self._functions = _functions_of(self._classes)
        self._names = self._all_names()

    def read(self, module: nn.Module, name: str) -> None:
        """Notes that the code reads ``module.name``."""
        kind, place = self._described.place(module)
        if (kind, place, name) in self._seen:
            return

        def state(described: Described) -> Hashable:
            owner = described.modules[place] if kind == "module" else module  # type: ignore[index]
            how, value = stored(owner, name)
            return (how, described.of(value))

        self._note((kind, place, name), state)

    def entered(self, frame: types.FrameType) -> None:
        """Notes what the code of a function mentions, as it begins to run."""
        code, values = frame.f_code, frame.f_globals
        self.codes.add(code)
        package = str(values.get("__name__", "")).partition(".")[0]
        if not is_user_file(code.co_filename) or package in _TRACERS_LIBRARIES:
            return
        self._nested.update(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
        for name in code.co_names:
            if name in values:
                mentioned = code.co_names if _has_mentioned_state(values[name]) else ()
                self._note((id(values), name, mentioned), _global_reader(values, name, mentioned))
            for kind in self._classes:  # type(self).name
                if name in vars(kind) and not isinstance(vars(kind)[name], types.FunctionType):
                    self._note((kind, name), lambda d, k=kind, n=name: d.of(vars(k).get(n)))  # type: ignore[misc]
        functions = self._functions.get(code, ())
        for function in functions:
            defaults = (function.__defaults__, function.__kwdefaults__)
            self._note(("defaults", function), lambda d, v=defaults: d.of(v))  # type: ignore[misc]
            for cell in function.__closure__ or ():
                self._note(("cell", id(cell)), lambda d, c=cell: _content(d, c))  # type: ignore[misc]
        if not functions and code not in self._nested:  # what is nested refers to the call's own variables
            for name in code.co_freevars:
                held = frame.f_locals.get(name)
                self._note(("held", id(held)), lambda d, v=held: d.of(v))  # type: ignore[misc]

    def unchanged(self) -> bool:
        """Whether all that was read is as it was."""
        return self._names == self._all_names() and self.holds_for(self._described)

    def holds_for(self, other: Described) -> bool:
        """Whether another layer's call would read the same."""
        try:
            return all(state(other) == seen for state, seen in self._seen.values())
        except UnclearError:
            return False

    def _note(self, key: Hashable, state: Callable[[Described], Hashable]) -> None:
        if key in self._seen:
            return
        try:
            self._seen[key] = (state, state(self._described))
        except UnclearError:
            self.repeatable = False

    def _all_names(self) -> list[frozenset[str]]:
        owners = [*self._described.root.modules(), *self._classes]
        return [frozenset(vars(owner)) for owner in owners]


def _has_mentioned_state(value: Any) -> bool:
    return isinstance(value, types.ModuleType | type) and written_by_user(value)


def _global_reader(
    values: Mapping[str, Any], name: str, mentioned: tuple[str, ...]
) -> Callable[[Described], Hashable]:
    """Reads a global name; of the user's modules, classes and functions, also the attributes mentioned."""

    def state(described: Described) -> Hashable:
        value = values.get(name)
        found = described.of(value)
        if isinstance(value, types.ModuleType | type):
            owners = value.__mro__ if isinstance(value, type) else (value,)
            attributes = [vars(owner)[n] for owner in owners for n in mentioned if n in vars(owner)]
            return (found, described.of(attributes))
        if isinstance(value, types.FunctionType) and is_user_file(value.__code__.co_filename):
            return (found, described.of([vars(value), value.__defaults__, value.__kwdefaults__]))
        return found

    return state


def _content(described: Described, cell: types.CellType) -> Hashable:
    try:
        return described.of(cell.cell_contents)
    except ValueError:  # not yet filled
        return None


def _classes_of(root: nn.Module) -> tuple[type, ...]:
    classes = dict.fromkeys(base for module in root.modules() for base in type(module).__mro__)
    return tuple(kind for kind in classes if written_by_user(kind))


def _functions_of(classes: Iterable[type]) -> dict[types.CodeType, list[types.FunctionType]]:
    """The methods of classes by their code: of these, closure variables can be looked up again."""
    found: dict[types.CodeType, list[types.FunctionType]] = {}
    for kind in classes:
        for member in vars(kind).values():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            while isinstance(function, types.FunctionType):
                found.setdefault(function.__code__, []).append(function)
                function = getattr(function, "__wrapped__", None)
    return found


@contextmanager
def observe(observation: Observation) -> Iterator[None]:
    """Watches what runs inside; afterwards ``observation.repeatable`` says whether it left no trace."""
    before, previous = random.getstate(), sys.gettrace()

    known = observation.codes

    def tracer(frame: types.FrameType, event: Any, argument: Any) -> Any:
        # Called for every function that torch calls to trace: the second time, nothing more is done here.
        if frame.f_code not in known:
            observation.entered(frame)
        return previous(frame, event, argument) if previous is not None else None

    with _attribute_hooks(observation):
        sys.settrace(tracer)
        try:
            yield
        finally:
            sys.settrace(previous)
    if random.getstate() != before or not observation.unchanged():
        observation.repeatable = False


@contextmanager
def _attribute_hooks(observation: Observation) -> Iterator[None]:
    plain_set, plain_delete = nn.Module.__setattr__, nn.Module.__delattr__

    def read(module: nn.Module, name: str) -> Any:
        if not name.startswith("__"):
            if name not in _STRUCTURE:
                observation.read(module, name)
        elif name == "__dict__" and is_user_file(sys._getframe(1).f_code.co_filename):
            observation.repeatable = False  # whatever it looks up there
        return object.__getattribute__(module, name)

    def write(module: nn.Module, name: str, value: Any) -> None:
        if not name.startswith("__"):
            observation.repeatable = False
        plain_set(module, name, value)

    def delete(module: nn.Module, name: str) -> None:
        observation.repeatable = False
        plain_delete(module, name)

    hooks: dict[str, Any] = {"__getattribute__": read, "__setattr__": write, "__delattr__": delete}
    before = {name: vars(nn.Module)[name] for name in hooks if name in vars(nn.Module)}
    for name, hook in hooks.items():
        setattr(nn.Module, name, hook)
    try:
        yield
    finally:
        for name in hooks:
            if name in before:
                setattr(nn.Module, name, before[name])
            else:
                delattr(nn.Module, name)
