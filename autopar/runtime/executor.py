"""Playing one rank's list of pipeline actions: forward and backward of micro-batches, activations and
gradients sent on.

The list is the one that the cost simulator plays (``schedule/actions.py``). What a stage hands on is posted
as soon as it is there; what a later action needs is asked for before the current one computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from autopar.lower.weight_gradients import WeightGradients
from autopar.runtime.crossings import Crossing
from autopar.runtime.held_stage import HeldStage
from autopar.runtime.links import Links
from autopar.runtime.messages import Schedule, produced
from autopar.runtime.script import Script, forward_only, make_script
from autopar.runtime.seeds import Seeds
from autopar.runtime.watchdog import Watchdog
from autopar.schedule.actions import Action, ActionKind

_ENDS_BACKWARD = (ActionKind.BACKWARD, ActionKind.WEIGHT_BACKWARD)

LossReader = Callable[[Tensor | None], object]
"""Called once in a pass with the mean loss of the micro-batches, as soon as it is known; with None, at the
beginning, on ranks without the last stage."""

Observer = Callable[[Action], AbstractContextManager[object]]
"""Called with every action; the action runs inside what it returns."""


@dataclass
class _InFlight:
    """What a micro-batch leaves behind between its forward and its backward pass."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    weight_gradients: WeightGradients | None


@dataclass
class _Step:
    batches: Sequence[Mapping[str, Tensor]]
    seeds: Seeds
    loss_gradient: float
    when_known: LossReader
    in_flight: dict[tuple[int, int], _InFlight] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    num_finished: dict[int, int] = field(default_factory=dict)
    split: frozenset[int] = frozenset()


class Executor:
    """Runs the actions of one rank.

    Args:
        stages: of this rank.
        schedule_of: number of micro-batches -> the actions of every rank on the pipeline axis, in order.
        num_stages: of the whole pipeline.
        rank_of: stage -> rank on the pipeline axis.
        rank: this rank's position there.
        links: to the ranks with the neighbouring stages.

    Attributes:
        num_stages: of the whole pipeline.
        rank_of: stage -> rank on the pipeline axis.
        observer: watches every action; tests and traces set it.
    """

    def __init__(
        self,
        stages: Iterable[HeldStage],
        schedule_of: Callable[[int], Schedule],
        num_stages: int,
        rank_of: Callable[[int], int],
        rank: int,
        links: Links,
        watchdog: Watchdog,
    ) -> None:
        self._stages = {stage.index: stage for stage in stages}
        self.num_stages = num_stages
        self.rank_of = rank_of
        self._schedule_of = schedule_of
        self._rank = rank
        self._links = links
        self._scripts: dict[tuple[int, bool], Script] = {}
        self._watchdog = watchdog
        self._has_loss = any(stage.loss is not None for stage in self._stages.values())
        self._used = {stage.index: stage.used for stage in self._stages.values()}
        self._batch_keys = {stage.index: stage.batch_keys for stage in self._stages.values()}
        self.observer: Observer = lambda _: nullcontext()

    @property
    def stages(self) -> tuple[HeldStage, ...]:
        """Of this rank, ascending."""
        return tuple(self._stages.values())

    def like(self, stages: Iterable[HeldStage], links: Links) -> Executor:
        """An executor of the same schedule for the same stages run otherwise."""
        return Executor(
            stages, self._schedule_of, self.num_stages, self.rank_of, self._rank, links, self._watchdog
        )

    def run(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        seeds: Seeds,
        label: str,
        when_known: LossReader,
        loss_scale: float = 1.0,
    ) -> None:
        """One optimiser step's forward and backward passes; gradients are left in the parameters, not yet
        synchronised.

        Args:
            batches: micro-batches of this data rank.
            seeds: for each stage and micro-batch, one per block.
            label: of the step, for messages.
            when_known: reads the loss.
            loss_scale: factor of all gradients, of the gradient of the mean loss in the first place.
        """
        step = _Step(batches, seeds, loss_scale / len(batches), when_known)
        self._play(step, self._script(len(batches), is_training=True), label)

    def evaluate(self, batches: Sequence[Mapping[str, Tensor]], label: str, when_known: LossReader) -> None:
        """The forward passes alone, without gradients, of what draws no random numbers."""
        seeds = {
            index: [(0,) * len(stage.module.programs)] * len(batches) for index, stage in self._stages.items()
        }
        self._pass(_Step(batches, seeds, 0.0, when_known), label)

    def compute(
        self,
        batches: Sequence[Mapping[str, Tensor]],
        seeds: Seeds,
        label: str,
    ) -> dict[tuple[str, int], Tensor]:
        """The forward passes alone, without gradients.

        Returns:
            What this rank's stages keep, by name and micro-batch.
        """
        step = _Step(batches, seeds, 0.0, lambda _: None)
        self._pass(step, label)
        return step.kept

    def _pass(self, step: _Step, label: str) -> None:
        with torch.no_grad():
            self._play(step, self._script(len(step.batches), is_training=False), label)

    def connect(self, num_micro_batches: int) -> None:
        """Opens the connections of a step; a collective of the ranks on the pipeline axis."""
        self._links.connect(self._script(num_micro_batches, is_training=True).traffic)

    def schedule(self, num_micro_batches: int) -> Schedule:
        """The actions of every rank on the pipeline axis in a step of so many micro-batches."""
        return self._schedule_of(num_micro_batches)

    def _script(self, num_micro_batches: int, is_training: bool) -> Script:
        key = num_micro_batches, is_training
        if key not in self._scripts:
            schedule = self._schedule_of(num_micro_batches)
            self._scripts[key] = make_script(
                schedule if is_training else forward_only(schedule), self._rank, self.num_stages, self.rank_of
            )
        return self._scripts[key]

    def _play(self, step: _Step, script: Script, label: str) -> None:
        step.split = script.split
        if not self._has_loss:
            step.when_known(None)
        self._links.begin(script.traffic)
        following = iter([message for message in script.awaited if message is not None])
        coming = next(following, None)
        if coming is not None:
            self._links.ask(coming)
        for action, message in zip(script.actions, script.awaited, strict=True):
            self._watchdog.at(
                f"{label}, {action.kind.words} of micro-batch {action.micro_batch} on stage {action.stage}"
            )
            with self.observer(action):
                arrived: list[Tensor] = []
                if message is not None:
                    arrived = self._links.wait(message)
                    coming = next(following, None)
                    if coming is not None:
                        self._links.ask(coming)
                self._run(step, action, arrived)
        self._links.finish()
        assert not step.in_flight

    def _run(self, step: _Step, action: Action, arrived: Sequence[Tensor]) -> None:
        stage = self._stages[action.stage]
        if action.kind is ActionKind.FORWARD:
            passed_on = self._forward(step, stage, action.micro_batch, arrived)
        elif action.kind is ActionKind.WEIGHT_BACKWARD:
            passed_on = []
        else:
            passed_on = self._backward(step, stage, action.micro_batch, arrived)
        message = produced(action, self.num_stages)
        if message is not None:
            self._links.send(message, passed_on)
        if action.kind in _ENDS_BACKWARD:
            self._finish_backward(step, stage, action.micro_batch)

    def _forward(
        self, step: _Step, stage: HeldStage, micro_batch: int, arrived: Sequence[Tensor]
    ) -> list[Tensor]:
        known = {crossing.name: value for crossing, value in zip(stage.received, arrived, strict=True)}
        inputs = {name: known[name] for name in self._used[stage.index]}
        is_training = torch.is_grad_enabled()
        for value in inputs.values():
            value.requires_grad_(is_training and value.is_floating_point())
        keys = self._batch_keys[stage.index]
        batch = {key: value for key, value in step.batches[micro_batch].items() if key in keys}
        later = WeightGradients() if stage.index in step.split else None
        results = stage.module(inputs, batch, step.seeds[stage.index][micro_batch], later, stage.route)
        outputs = dict(zip(stage.route.outputs, results, strict=True))
        step.kept.update({(name, micro_batch): outputs[name] for name in stage.kept})
        if stage.loss is not None:
            loss = outputs[stage.loss]
            step.losses.append(loss.detach().to(torch.promote_types(loss.dtype, torch.float32)))
            if len(step.losses) == len(step.batches):
                step.when_known(torch.stack(step.losses).mean())
        known.update(outputs)
        if is_training:
            step.in_flight[stage.index, micro_batch] = _InFlight(inputs, outputs, later)
        return [known[crossing.name].detach() for crossing in stage.sent]

    def _backward(
        self, step: _Step, stage: HeldStage, micro_batch: int, arrived: Sequence[Tensor]
    ) -> list[Tensor]:
        flight = step.in_flight[stage.index, micro_batch]
        with_gradient = [crossing.name for crossing in stage.sent if crossing.has_gradient]
        given: dict[str, Tensor] = dict(zip(with_gradient, arrived, strict=True))
        if stage.loss is not None:
            given = {stage.loss: torch.full_like(flight.outputs[stage.loss], step.loss_gradient)}
        is_last = step.num_finished.get(stage.index, 0) + 1 == len(step.batches)
        stage.replicas.before_backward(is_last, is_whole=flight.weight_gradients is None)
        roots = [(value, given[name]) for name, value in flight.outputs.items() if value.requires_grad]
        if roots:
            torch.autograd.backward([value for value, _ in roots], [gradient for _, gradient in roots])
        passed_on = [self._input_gradient(x, flight, given) for x in stage.received if x.has_gradient]
        flight.inputs, flight.outputs = {}, {}
        return passed_on

    def _finish_backward(self, step: _Step, stage: HeldStage, micro_batch: int) -> None:
        flight = step.in_flight.pop((stage.index, micro_batch))
        step.num_finished[stage.index] = step.num_finished.get(stage.index, 0) + 1
        if flight.weight_gradients is not None:
            flight.weight_gradients.run()
            stage.replicas.after_weight_gradients(step.num_finished[stage.index] == len(step.batches))

    def _input_gradient(self, crossing: Crossing, flight: _InFlight, given: Mapping[str, Tensor]) -> Tensor:
        own = flight.inputs[crossing.name].grad if crossing.name in flight.inputs else None
        later = given.get(crossing.name)  # of a value that only passes through, or is read again further on
        if own is not None and later is not None:
            return own + later
        found = own if own is not None else later
        if found is None:
            return torch.zeros(crossing.shape, dtype=crossing.dtype, device=self._links.device)
        return found
