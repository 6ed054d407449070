"""A field that is made when it is first asked for: planning looks into one graph of each class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

Class = TypeVar("Class")
Value = TypeVar("Value")


class _Deferred:
    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def deferred(make: Callable[[], Value]) -> Value:
    """What may be given for a field that is ``made_when_read``: it is made at the first access."""
    return cast(Value, _Deferred(make))


def made_when_read(field: str) -> Callable[[type[Class]], type[Class]]:
    """Lets a field of a dataclass (without slots) be given as ``deferred``."""

    def decorate(owner: type[Class]) -> type[Class]:
        setattr(owner, field, _Field(f"_{field}"))
        return owner

    return decorate


class _Field:
    """The descriptor of such a field."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __get__(self, instance: Any, owner: type) -> Any:
        held = instance.__dict__[self._place]
        if isinstance(held, _Deferred):
            held = instance.__dict__[self._place] = held.make()
        return held

    def __set__(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._place] = value
