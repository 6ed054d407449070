"""Starting weights that do not depend on the plan, one parameter in memory at a time.

``seeded`` draws every random operator of the recorded construction from a seed of its own, derived from
(seed, name of the first parameter that it reaches, ordinal): any subset of the parameters can be made
anywhere, in any order. ``exact`` runs the whole record in order from ``torch.manual_seed(seed)`` and equals
the plain construction bit for bit. Weights that exist already come from a ``state_source``; what no state
dict holds, such as tables of positions, is made as under ``seeded``. A construction that cannot be recorded,
since it reads files or computes with what it has drawn, is run as it is under both ``seeded`` and ``exact``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import StrEnum

import torch
from torch import Tensor, nn

from autopar.runtime.recording import (
    OtherAnswerError,
    Recording,
    Replay,
    TensorView,
    construct,
    is_recorded,
    record_construction,
)
from autopar.runtime.state_source import Given, open_source


class Initialisation(StrEnum):
    """How starting weights are drawn."""

    SEEDED = "seeded"
    EXACT = "exact"


Init = Initialisation | Given
"""A way to draw starting weights, or weights."""


def hash_seed(*parts: object) -> int:
    """A 62-bit seed from a few words and numbers, equal on every machine."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 2


class InitialState:
    """Source of the starting values of a model's parameters and buffers, in original shapes and names.

    Args:
        build_model: builds the model; runs once, on fake tensors.
        seed: of all randomness.
        init: ``seeded``, ``exact``, or weights: a state dict, or the path of a file or folder of them.

    Raises:
        UsageError: the weights are not there, or not this model's.
    """

    def __init__(
        self, build_model: Callable[[], nn.Module], seed: int = 0, init: Init = Initialisation.SEEDED
    ) -> None:
        is_drawn = isinstance(init, str) and init in set(Initialisation)
        self._source = None if is_drawn else open_source(init)
        self._init = Initialisation(str(init)) if is_drawn else Initialisation.SEEDED
        self._build_model = build_model
        self._recording: Recording = record_construction(build_model, seed)
        self._seed = seed
        stays_on_meta = any(value.is_meta for value in self._recording.module.parameters())
        if self._init is Initialisation.EXACT and not self._recording.is_one_stream and not stays_on_meta:
            self._recording = construct(build_model, seed)
        module = self._recording.module
        self.parameters: Mapping[str, nn.Parameter] = dict(module.named_parameters())
        self.buffers: Mapping[str, Tensor] = dict(module.named_buffers())
        held = module.state_dict(keep_vars=True)  # without: each tensor detached, only to be thrown away
        self.persistent = frozenset(name for name in held if name in self.buffers)
        self._names = _all_names(module)
        if self._source is not None:
            self._source.check(
                {self._names[name]: self._tensor(name) for name in self._held(self.names)},
                frozenset(name for each in self.buffers for name in self._names[each]) - self.persistent,
            )
        self._seeds = self._operation_seeds() if self._init is Initialisation.SEEDED else {}

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of all parameters, then of all buffers."""
        return (*self.parameters, *self.buffers)

    def values(self, names: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yields the whole starting value of each name (default: all), holding as few at a time as can be.

        The order is that of the model under ``seeded``, that of completion under ``exact``.
        """
        chosen = set(self.names if names is None else names)
        given = set(self._held(chosen)) if self._source is not None else set()
        for name in self.names:
            if name in given and self._source is not None:
                value = self._source.read(self._names[name])
                yield name, value.reshape(self._tensor(name).shape)
        wanted = [name for name in self.names if name in chosen and name not in given]
        recorded: dict[str, TensorView] = {}
        for name in wanted:
            tensor = self._tensor(name)
            if is_recorded(tensor):
                recorded[name] = self._recording.view(tensor)
            else:
                yield name, tensor.detach().clone()
        if self._init is Initialisation.SEEDED:
            yield from self._seeded(recorded)
            return
        done: set[str] = set()
        try:
            for name, value in self._exact(recorded):
                done.add(name)
                yield name, value
        except OtherAnswerError:
            yield from self._constructed(recorded.keys() - done)

    def _constructed(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Values out of the whole model: it goes on in another way than was recorded."""
        module = construct(self._build_model, self._seed).module
        held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        yield from ((name, held[name].detach()) for name in self.names if name in names)

    def _held(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that a state dict holds."""
        return [name for name in names if name in self.parameters or name in self.persistent]

    def _tensor(self, name: str) -> Tensor:
        return self.parameters[name] if name in self.parameters else self.buffers[name]

    def _operation_seeds(self) -> dict[int, int]:
        seeds: dict[int, int] = {}
        for name in self.names:
            tensor = self._tensor(name)
            if not is_recorded(tensor):
                continue
            for ordinal, index in enumerate(self._recording.slice_for(self._recording.view(tensor))):
                if self._recording.operations[index].is_random and index not in seeds:
                    seeds[index] = hash_seed(self._seed, name, ordinal)
        return seeds

    def _seeded(self, recorded: Mapping[str, TensorView]) -> Iterator[tuple[str, Tensor]]:
        for name, view in recorded.items():
            replay = Replay(self._recording)
            with torch.random.fork_rng(devices=[]):
                for index in self._recording.slice_for(view):
                    if index in self._seeds:
                        # All of it runs on the CPU; torch.manual_seed() also writes down the call stack,
                        # once for every kind of device that is not there.
                        torch.default_generator.manual_seed(self._seeds[index])
                    replay.run(self._recording.operations[index])
            yield name, replay.tensor(view)

    def _exact(self, recorded: Mapping[str, TensorView]) -> Iterator[tuple[str, Tensor]]:
        operations = self._recording.operations
        last_use: dict[int, int] = {}
        for index, operation in enumerate(operations):
            last_use.update(dict.fromkeys(operation.reads | operation.writes, index))
        ending: dict[int, list[int]] = {}
        for storage, index in last_use.items():
            ending.setdefault(index, []).append(storage)
        named: dict[int, list[str]] = {}
        for name, view in recorded.items():
            named.setdefault(view.storage, []).append(name)
        replay = Replay(self._recording)
        generator_state = _fresh_generator_state(self._seed)
        for index, operation in enumerate(operations):
            if operation.is_random:
                # The caller of this generator may draw numbers between two values: keep a stream of our own.
                with torch.random.fork_rng(devices=[]):
                    torch.set_rng_state(generator_state)
                    replay.run(operation)
                    generator_state = torch.get_rng_state()
            else:
                replay.run(operation)
            for storage in ending.get(index, ()):
                for name in named.get(storage, ()):
                    yield name, replay.tensor(recorded[name])
                replay.free(storage)


def _all_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Canonical name of every parameter and buffer -> all of its names."""
    found: dict[int, list[str]] = {}
    tensors: list[tuple[str, Tensor]] = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        found.setdefault(id(tensor), []).append(name)
    return {names[0]: tuple(names) for names in found.values()}


def _fresh_generator_state(seed: int) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()


def initial_state(
    build_model: Callable[[], nn.Module], seed: int = 0, init: Init = Initialisation.SEEDED
) -> Iterator[tuple[str, Tensor]]:
    """The starting weights of every plan, for use in one process: pairs of canonical name and whole tensor.

    Yields parameters and buffers one at a time, in the dtype in which ``build_model`` makes them.
    """
    return InitialState(build_model, seed, init).values()


def load_initial_state(
    module: nn.Module,
    build_model: Callable[[], nn.Module],
    seed: int = 0,
    init: Init = Initialisation.SEEDED,
) -> None:
    """Gives a plain module the starting weights that ``parallelize`` gives every plan, in place."""
    targets = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    with torch.no_grad():
        for name, value in initial_state(build_model, seed, init):
            targets[name].copy_(value)
