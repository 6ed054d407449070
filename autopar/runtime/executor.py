"""Playing one rank's list of pipeline actions: forward and backward of micro-batches, activations and
gradients sent on.

The list is the one that the cost simulator plays (``schedule/actions.py``). What a stage hands on is posted
as soon as it is there; what the next action needs is asked for before the current one computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.runtime.links import Links
from autopar.runtime.mesh import RankMesh
from autopar.runtime.replicas import Replicas
from autopar.runtime.stage import StageModule, batch_reads, reads
from autopar.runtime.watchdog import Watchdog
from autopar.schedule.actions import Action, ActionKind


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value that crosses the boundary between two stages, as one rank holds it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def has_gradient(self) -> bool:
        """Whether a gradient travels back."""
        return self.dtype.is_floating_point


@dataclass
class _InFlight:
    """What a micro-batch leaves behind between its forward and its backward pass."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


@dataclass
class _Step:
    batches: Sequence[Mapping[str, Tensor]]
    seeds: Sequence[tuple[int, ...]]
    loss_gradient: float
    in_flight: dict[int, _InFlight] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    num_backwards: int = 0


class Executor:
    """Runs the actions of one rank.

    Args:
        stage: the module of this rank.
        index: of the stage.
        actions: of this rank, in order.
        received: values from the stage before, in the order in which they are sent.
        sent: values for the stage after, likewise.
        links: to the neighbouring stages.
        replicas: data parallelism of the stage.
        loss: global name of the loss when this is the last stage.
    """

    def __init__(
        self,
        stage: StageModule,
        index: int,
        actions: Sequence[Action],
        received: Sequence[Crossing],
        sent: Sequence[Crossing],
        links: Links,
        replicas: Replicas,
        watchdog: Watchdog,
        loss: str | None,
    ) -> None:
        self._stage = stage
        self._index = index
        self._actions = tuple(actions)
        self._received = tuple(received)
        self._sent = tuple(sent)
        self._links = links
        self._replicas = replicas
        self._watchdog = watchdog
        self._loss = loss
        used = {name for program in stage.programs for name in reads(program.block)}
        self._used = tuple(crossing.name for crossing in self._received if crossing.name in used)
        self._batch_keys = {key for program in stage.programs for key in batch_reads(program.block)}

    def run(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        seeds: Sequence[tuple[int, ...]],
        label: str,
        loss_scale: float = 1.0,
    ) -> Tensor | None:
        """One optimiser step's forward and backward passes; gradients are left in the parameters, not yet
        synchronised.

        Args:
            batches: micro-batches of this data rank.
            seeds: for each micro-batch, one per block of the stage.
            label: of the step, for messages.
            loss_scale: factor of all gradients, of the gradient of the mean loss in the first place.

        Returns:
            Mean loss of the micro-batches on the last stage, else None.
        """
        step = _Step(batches, seeds, loss_scale / len(batches))
        self._post(self._actions[0])
        for position, action in enumerate(self._actions):
            what = "forward" if action.kind is ActionKind.FORWARD else "backward"
            self._watchdog.at(f"{label}, {what} of micro-batch {action.micro_batch} on stage {self._index}")
            arrived = self._links.wait(self._key(action))
            if position + 1 < len(self._actions):
                self._post(self._actions[position + 1])
            if action.kind is ActionKind.FORWARD:
                self._forward(step, action.micro_batch, arrived)
            else:
                self._backward(step, action.micro_batch, arrived)
        self._links.finish()
        assert not step.in_flight
        return torch.stack(step.losses).mean() if step.losses else None

    def _key(self, action: Action) -> tuple[str, int]:
        return action.kind.value, action.micro_batch

    def _post(self, action: Action) -> None:
        if action.kind is ActionKind.FORWARD:
            self._links.ask_previous(self._key(action), self._received)
        else:
            self._links.ask_next(self._key(action), [x for x in self._sent if x.has_gradient])

    def _forward(self, step: _Step, micro_batch: int, arrived: Sequence[Tensor]) -> None:
        known = {crossing.name: value for crossing, value in zip(self._received, arrived, strict=True)}
        inputs = {name: known[name] for name in self._used}
        for value in inputs.values():
            value.requires_grad_(value.is_floating_point())
        batch = {key: value for key, value in step.batches[micro_batch].items() if key in self._batch_keys}
        results = self._stage(inputs, batch, step.seeds[micro_batch])
        outputs = dict(zip(self._stage.outputs, results, strict=True))
        if self._loss is not None:
            loss = outputs[self._loss]
            step.losses.append(loss.detach().to(torch.promote_types(loss.dtype, torch.float32)))
        known.update(outputs)
        self._links.send_next([known[crossing.name].detach() for crossing in self._sent])
        step.in_flight[micro_batch] = _InFlight(inputs, outputs)

    def _backward(self, step: _Step, micro_batch: int, arrived: Sequence[Tensor]) -> None:
        flight = step.in_flight.pop(micro_batch)
        with_gradient = [crossing.name for crossing in self._sent if crossing.has_gradient]
        given: dict[str, Tensor] = dict(zip(with_gradient, arrived, strict=True))
        if self._loss is not None:
            given = {self._loss: torch.full_like(flight.outputs[self._loss], step.loss_gradient)}
        step.num_backwards += 1
        self._replicas.before_backward(is_last=step.num_backwards == len(step.batches))
        roots = [(value, given[name]) for name, value in flight.outputs.items() if value.requires_grad]
        if roots:
            torch.autograd.backward([value for value, _ in roots], [gradient for _, gradient in roots])
        passed = [self._input_gradient(x, flight, given) for x in self._received if x.has_gradient]
        self._links.send_previous(passed)

    def _input_gradient(self, crossing: Crossing, flight: _InFlight, given: Mapping[str, Tensor]) -> Tensor:
        own = flight.inputs[crossing.name].grad if crossing.name in flight.inputs else None
        later = given.get(crossing.name)  # of a value that only passes through, or is read again further on
        if own is not None and later is not None:
            return own + later
        found = own if own is not None else later
        if found is None:
            return torch.zeros(crossing.shape, dtype=crossing.dtype, device=self._links.device)
        return found


def mean_loss(loss: Tensor | None, mesh: RankMesh) -> Tensor:
    """The loss averaged over the data ranks, the same on every rank; a collective of all of them.

    Args:
        loss: of this rank; None where the last stage is elsewhere.
    """
    precise = torch.float64 if mesh.device.type == "cpu" else torch.float32
    total = torch.zeros((), dtype=precise, device=mesh.device)
    if loss is not None:
        total += loss.to(precise) / (mesh.data * mesh.tensor)
    if mesh.size > 1:
        dist.all_reduce(total, group=mesh.world_group)
    return total
