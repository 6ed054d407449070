"""Parameters that are kept from the tracer because the calls of their layers are going to be repeats.

Tracing pays for every parameter of a model, used or not; in a deep one nearly all belong to layers that equal
an earlier one (``sharing``). So the parameters of these are taken out of the model while it is traced. A
repeated call says by a number whose they are, and their placeholders are put into the graph afterwards, where
the exporter would have put them.

Nothing may look for them meanwhile. Where something does, or a layer turns out not to equal an earlier one,
they are put back and the trace runs to its end, so that the user's code is not broken off in the middle; what
it shows is then of no use, and the model has to be traced again with that layer's parameters in their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

EVERYTHING = ""
"""Stands for all layers where one is named."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer without its parameters.

    Attributes:
        name: in the model.
        module: itself.
        parameters: of every module in it, as that holds them, and what stands in their place.
    """

    name: str
    module: nn.Module
    parameters: tuple[tuple[nn.Module, dict[str, nn.Parameter | None], _Absent], ...]


class Withheld:
    """The parameters of some layers of a model.

    Args:
        groups: modules of equal structure; of each the first is traced, or one like it.
        in_place: names of layers whose parameters stay where they are.

    Attributes:
        wanted: the layer whose parameters were looked for first, or ``EVERYTHING``; None while none were.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[Sequence[nn.Module]], in_place: Collection[str] = ()
    ) -> None:
        self.wanted: str | None = None
        self._is_tracing = False
        self._layers: list[_Layer] = []
        self._numbers: dict[int, int] = {}
        if EVERYTHING in in_place:
            return
        names = {module: name for name, module in model.named_modules()}
        for module in _repeated(model, groups, {m for m, name in names.items() if name in in_place}):
            # Tracing wraps modules in proxies that share the attributes.
            self._numbers[id(module.__dict__)] = len(self._layers)
            self._layers.append(self._layer(names[module], module))

    def _layer(self, name: str, module: nn.Module) -> _Layer:
        found = [
            (inner, inner._parameters, _Absent(inner._parameters, name, self._look))
            for inner in module.modules()
            if inner._parameters
        ]
        return _Layer(name, module, tuple(found))

    def number(self, module: nn.Module) -> int | None:
        """Which layer a module is; None where its parameters are in their place."""
        return self._numbers.get(id(module.__dict__)) if self.wanted is None else None

    def want(self, number: int) -> None:
        """Puts everything back, because a layer is to be traced in full."""
        self._give_up(self._layers[number].name)

    def _look(self, layer: str) -> bool:
        """Whether something that looks for the parameters of a layer, or of ``EVERYTHING``, sees them: only
        the user's code does."""
        if self._is_tracing and self.wanted is None:
            self._give_up(layer)
        return self.wanted is not None

    def _give_up(self, layer: str) -> None:
        self.wanted = layer
        for one in self._layers:
            _put(one, there=True)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Inside, the model is without them."""
        for layer in self._layers:
            _put(layer, there=False)
        try:
            yield
        finally:
            for layer in self._layers:
                _put(layer, there=True)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Inside, the user's code runs: it must not miss them."""
        self._is_tracing = True
        try:
            yield
        finally:
            self._is_tracing = False

    @contextmanager
    def shown(self, number: int | None) -> Iterator[None]:
        """Inside, a layer has its parameters."""
        if number is None:
            yield
            return
        _put(self._layers[number], there=True)
        try:
            yield
        finally:
            _put(self._layers[number], there=self.wanted is not None)

    def put_back(
        self, graph: fx.Graph, model: nn.Module, existing: Mapping[str, fx.Node]
    ) -> tuple[dict[str, fx.Node], list[list[fx.Node]]]:
        """Gives them placeholders, in the order of the model's parameters.

        Args:
            model: with all its parameters.
            existing: placeholders of the others, by their names in the model.

        Returns:
            the new placeholders by the names of their parameters; and by the number of the layer, those of
            its parameters in their order.
        """
        known = set(existing.values())
        following = next(node for node in graph.nodes if node not in known)
        added: dict[str, fx.Node] = {}
        own_names = [
            [f"{layer.name}.{name}" for name, _ in layer.module.named_parameters(remove_duplicate=False)]
            for layer in self._layers
        ]
        missing = {name for names in own_names for name in names}
        values: dict[Hashable, Tensor] = {}  # parameters that are alike have one fake value
        for name, parameter in reversed(list(model.named_parameters(remove_duplicate=False))):
            if name in existing:
                following = existing[name]
            elif name in missing:
                with graph.inserting_before(following):
                    following = added[name] = graph.placeholder(_placeholder_name(name))
                kind = parameter.shape, parameter.stride(), parameter.dtype
                following.meta["val"] = values.setdefault(kind, parameter)
        return added, [[added[name] for name in names] for names in own_names]


class _Absent(dict[str, Any]):
    """In the place of a module's parameters: seems empty, unless looking for them puts them back."""

    def __init__(self, own: dict[str, Any], layer: str, look: Callable[[str], bool]) -> None:
        super().__init__()
        self._own, self._layer, self._look = own, layer, look

    def _seen(self, layer: str) -> dict[str, Any]:
        return self._own if self._look(layer) else {}

    def __contains__(self, name: object) -> bool:
        return name in self._own and name in self._seen(self._layer)

    def __getitem__(self, name: str) -> Any:
        return self._seen(self._layer)[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._seen(self._layer)[name] = value

    def __delitem__(self, name: str) -> None:
        del self._seen(self._layer)[name]

    def get(self, name: str, default: Any = None) -> Any:
        """As in ``dict``."""
        return self._seen(self._layer).get(name, default) if name in self._own else default

    # Whoever goes through the parameters of one layer goes through all.

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen(EVERYTHING))

    def __len__(self) -> int:
        return len(self._seen(EVERYTHING))

    def keys(self) -> Any:
        """As in ``dict``."""
        return self._seen(EVERYTHING).keys()

    def values(self) -> Any:
        """As in ``dict``."""
        return self._seen(EVERYTHING).values()

    def items(self) -> Any:
        """As in ``dict``."""
        return self._seen(EVERYTHING).items()


def _put(layer: _Layer, *, there: bool) -> None:
    for module, parameters, absent in layer.parameters:
        module.__dict__["_parameters"] = parameters if there else absent


def _repeated(
    model: nn.Module, groups: Sequence[Sequence[nn.Module]], in_place: Collection[nn.Module]
) -> list[nn.Module]:
    """The outermost modules that equal one traced before, as far as nothing else needs their parameters."""
    group_of = {module: number for number, group in enumerate(groups) for module in group}
    found = list(_outermost(model, group_of, in_place, set()))
    while True:
        others = list(_around(model, set(found)))
        users: dict[int, int] = {}
        for number, modules in enumerate((others, *(list(module.modules()) for module in found))):
            for module in modules:
                for part in (module, *module._parameters.values()):
                    if part is not None and users.setdefault(id(part), number) != number:
                        users[id(part)] = -1  # several layers have it
        kept = [m for m in found if all(users[id(p)] != -1 for p in _parts(m)) and _may_be_without(m)]
        if len(kept) == len(found):
            return found
        found = kept


def _outermost(
    parent: nn.Module,
    group_of: Mapping[nn.Module, int],
    in_place: Collection[nn.Module],
    seen: set[nn.Module],
) -> Iterator[nn.Module]:
    """Modules that equal an earlier one of the same parent: layers of different stacks often differ in what
    they do."""
    traced: set[int] = set()
    for child in parent.children():
        if child in seen:
            continue
        seen.add(child)
        number = group_of.get(child)
        if number is not None and number in traced and child not in in_place:
            yield child
        elif number is not None:
            traced.add(number)  # what is inside is traced with it
        else:
            yield from _outermost(child, group_of, in_place, seen)


def _around(module: nn.Module, left_out: set[nn.Module]) -> Iterator[nn.Module]:
    """Modules in a module that are reached without going through others."""
    seen, stack = set[nn.Module](), [module]
    while stack:
        one = stack.pop()
        if one not in seen and one not in left_out:
            seen.add(one)
            yield one
            stack += one.children()


def _parts(module: nn.Module) -> Iterator[object]:
    """Modules and parameters in a module."""
    for inner in module.modules():
        yield inner
        yield from (parameter for parameter in inner._parameters.values() if parameter is not None)


def _may_be_without(module: nn.Module) -> bool:
    """Whether a module reaches its parameters only as the registered ones, and has no buffers."""
    return not any(True for _ in module.buffers()) and not any(
        _holds_tensor(value)
        for inner in module.modules()
        for name, value in vars(inner).items()
        if name != "_parameters"
    )


def _holds_tensor(value: object) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return any(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def _placeholder_name(parameter: str) -> str:
    """As the exporter names it."""
    return "p_" + re.sub(r"[^a-zA-Z0-9]", "_", parameter.lower())
