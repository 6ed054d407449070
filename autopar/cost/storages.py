"""Which bytes of a block live when: sets of storages, and the most that overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class BlockMemory:
    """Bytes of one rank and one micro-batch.

    Attributes:
        saved_bytes: kept from forward to backward.
        input_bytes: of the activations that the block reads; all that full recompute keeps.
        output_bytes: of the values that it returns.
        forward_transient_bytes: most that lives beyond in the forward pass.
        backward_transient_bytes: likewise in the backward pass, gradients of parameters in the compute dtype
            included.
        selective_bytes: kept under selective recompute.
        replayed_bytes: what full recompute brings back beside the inputs.
        selective_replayed_bytes: what selective recompute brings back beside what it kept.
    """

    saved_bytes: int
    input_bytes: int
    output_bytes: int
    forward_transient_bytes: int
    backward_transient_bytes: int
    selective_bytes: int
    replayed_bytes: int
    selective_replayed_bytes: int


class Storages:
    """A set of storages, by identity."""

    def __init__(self) -> None:
        self._held: dict[int, torch.UntypedStorage] = {}

    def add(self, storage: torch.UntypedStorage) -> None:
        """Adds a storage. Holding it keeps its id from being given to another."""
        self._held[id(storage)] = storage

    def remove(self, storage: torch.UntypedStorage) -> None:
        """Takes a storage out of the set."""
        self._held.pop(id(storage), None)

    def __contains__(self, tensor: object) -> bool:
        return isinstance(tensor, Tensor) and id(tensor.untyped_storage()) in self._held

    def __len__(self) -> int:
        return len(self._held)

    def has(self, key: int) -> bool:
        """Whether the storage with this id is in the set."""
        return key in self._held

    def added_since(self, count: int) -> list[torch.UntypedStorage]:
        """The storages but the first ``count``."""
        return list(self._held.values())[count:]

    def beyond(self, *others: Storages) -> int:
        """Bytes of the storages that none of the others holds."""
        held = self._held.items()
        return sum(s.nbytes() for key, s in held if not any(other.has(key) for other in others))

    def total(self) -> int:
        """Bytes of all of them."""
        return sum(storage.nbytes() for storage in self._held.values())


@dataclass(slots=True)
class Life:
    """A storage made by the program: from which step to which it is used, and its gradient."""

    first: int
    last: int
    num_bytes: int
    differentiable: bool


@dataclass(slots=True)
class Ledger:
    """What a run of a block notes about its storages.

    Attributes:
        inputs: of activations that the block reads.
        outputs: of what it returns.
        saved: what autograd keeps.
        kept: what selective recompute keeps.
        uncounted: of parameters, buffers, constants and batch entries.
        lives: by id of the storage.
        extra: by step, bytes that the backward call needs beside gradients.
        kept_inside_bytes: of results of collectives that local operators run themselves.
        alive: held, so that no id is given away twice.
    """

    inputs: Storages
    outputs: Storages
    saved: Storages
    kept: Storages
    uncounted: Storages
    lives: dict[int, Life]
    extra: dict[int, int]
    kept_inside_bytes: int = 0
    alive: list[torch.UntypedStorage] = field(default_factory=list)

    def memory(self) -> BlockMemory:
        """The sums and peaks."""
        held = [life for key, life in self.lives.items() if not (self.saved.has(key) or self.inputs.has(key))]
        return BlockMemory(
            saved_bytes=self.saved.total(),
            input_bytes=self.inputs.total(),
            output_bytes=self.outputs.total(),
            forward_transient_bytes=_peak(held, {}),
            backward_transient_bytes=_peak(
                [life for life in self.lives.values() if life.differentiable], self.extra
            ),
            selective_bytes=self.inputs.total() + self.kept.beyond(self.inputs) + self.kept_inside_bytes,
            replayed_bytes=self.saved.beyond(self.inputs),
            selective_replayed_bytes=self.saved.beyond(self.inputs, self.kept),
        )

    def born(self, tensors: Iterable[tuple[Tensor, bool]], step: int) -> tuple[int, ...]:
        """Notes results of a call with whether they require a gradient; returns ids of their storages."""
        keys = []
        for tensor, requires_grad in tensors:
            storage = tensor.untyped_storage()
            key = id(storage)
            if self.uncounted.has(key):
                continue
            keys.append(key)
            life = self.lives.get(key)
            if life is None:
                self.alive.append(storage)
                self.lives[key] = Life(step, step, storage.nbytes(), requires_grad)
            else:
                life.last = step
        return tuple(keys)

    def used(self, keys: Iterable[int], step: int) -> None:
        """Notes that a step reads the storages."""
        for key in keys:
            if key in self.lives:
                self.lives[key].last = step


def new_ledger() -> Ledger:
    """A ledger with nothing in it."""
    return Ledger(Storages(), Storages(), Storages(), Storages(), Storages(), {}, {})


def _peak(lives: list[Life], extra: Mapping[int, int]) -> int:
    """Most bytes of overlapping lives at any step, with what the step itself needs."""
    last = max([life.last for life in lives] + list(extra), default=-1)
    change = [0] * (last + 2)
    for life in lives:
        change[life.first] += life.num_bytes
        change[life.last + 1] -= life.num_bytes
    peak = live = 0
    for step in range(last + 1):
        live += change[step]
        peak = max(peak, live + extra.get(step, 0))
    return peak
