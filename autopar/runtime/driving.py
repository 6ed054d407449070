"""The model driven like any module: outputs for the user's own loss, whose backward pass leaves gradients.

The stages' autograd graph ends at the outputs. What the user computes with them is another one; where its
backward pass arrives at the outputs, that of the stages runs, and the gradients are synchronised, as
DistributedDataParallel does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from autopar.errors import UsageError
from autopar.runtime.assemble import Assembly
from autopar.runtime.gradients import add_back, set_aside
from autopar.runtime.loss_scale import LossScale
from autopar.runtime.mesh import RankMesh
from autopar.runtime.output_passes import OutputPass, mark_name
from autopar.runtime.seeds import Seeds
from autopar.runtime.storage import local_tensor


class Driving:
    """Forward passes with gradient of one rank, under a plan without a pipeline.

    Args:
        loss_scale: of the gradients inside the stages; the user sees none of it.
        surroundings: label -> what goes around a backward pass.

    Attributes:
        synchronises: whether backward passes leave complete gradients; not inside ``no_sync``.
        was_driven: whether there were any since the last update.
    """

    def __init__(
        self,
        assembly: Assembly,
        mesh: RankMesh,
        loss_scale: LossScale,
        surroundings: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._assembly = assembly
        self._mesh = mesh
        self._surroundings = surroundings
        self._loss_scale = loss_scale
        self._has_overflowed = False  # since the last update
        self.synchronises = True
        self._unsynchronised: dict[str, Tensor] = {}
        self._anchor = torch.zeros((), device=mesh.device, requires_grad=True)
        self.was_driven = False

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes inside leave their gradients for the next one outside to synchronise."""
        before, self.synchronises = self.synchronises, False
        try:
            yield
        finally:
            self.synchronises = before

    def forget(self) -> None:
        """Drops gradients that wait to be synchronised."""
        self._unsynchronised = {}

    def forget_overflow(self) -> None:
        """Other parameters have come in the place of those whose gradients overflowed."""
        self._has_overflowed = False

    def note_update(self) -> bool:
        """Called after an update of the parameters; returns whether backward passes led to it."""
        for replicas in self._assembly.replicas:  # a forward pass may have been without a backward pass
            replicas.after_evaluation()
        was_driven, self.was_driven = self.was_driven, False
        has_overflowed, self._has_overflowed = self._has_overflowed, False
        if was_driven and self._loss_scale.is_active:
            before = self._loss_scale.factor
            self._loss_scale.update(not has_overflowed)
            for gradient in self._unsynchronised.values():
                local_tensor(gradient).mul_(self._loss_scale.factor / before)
        return was_driven

    def compute(
        self, used: OutputPass, batches: Sequence[Mapping[str, Tensor]], seeds: Seeds
    ) -> dict[tuple[str, int], Tensor]:
        """Marked values by name and micro-batch, with the autograd graph that leads to them."""
        found: dict[tuple[str, int], Tensor] = {}
        for index, batch in enumerate(batches):
            known: dict[str, Tensor] = {}
            for stage in used.stages:
                inputs = {name: known[name] for name in stage.used}
                given = {key: batch[key] for key in stage.batch_keys}
                results = stage.module(inputs, given, seeds[stage.index][index], None, stage.route)
                known.update(zip(stage.route.outputs, results, strict=True))
            found.update({(name, index): known[name] for value in used.ranks for name in (mark_name(value),)})
        return found

    def hand_out(self, values: Sequence[Tensor | None], label: str) -> list[Tensor | None]:
        """The same values for the user: a backward pass that reaches them runs that of the stages."""
        roots = [value for value in values if value is not None and value.requires_grad]
        if not roots:
            return list(values)
        # In fp16, small gradients of the user's own loss would vanish before they are scaled.
        dtype = torch.float32 if self._loss_scale.is_active else None
        backward = _StagesBackward(self, roots, label, dtype)
        handed = iter(_Boundary.apply(self._anchor, backward))  # type: ignore[no-untyped-call]
        return [next(handed) if value is not None and value.requires_grad else value for value in values]

    def run_backward(self, roots: Sequence[Tensor], gradients: Sequence[Tensor], label: str) -> None:
        """Runs the backward pass of the stages and leaves complete gradients in the parameters."""
        stages, replicas = self._assembly.stages, self._assembly.replicas
        self.was_driven = True
        with self._surroundings(label):
            parameters = dict(stages.named_originals())
            complete = set_aside(parameters)
            for name, gradient in self._unsynchronised.items():
                parameters[name].grad = gradient
            for each in replicas:
                each.before_backward(self.synchronises)
            if self._loss_scale.is_active:
                factor = self._loss_scale.factor
                gradients = [(g * factor).to(x.dtype) for x, g in zip(roots, gradients, strict=True)]
            torch.autograd.backward(list(roots), list(gradients))
            if self.synchronises:
                self._unsynchronised = {}
                self._assembly.synchronise_gradients(self._mesh)
                if self._loss_scale.is_active:
                    self.unscale(parameters, complete)
            else:
                self._unsynchronised = set_aside(parameters)
            add_back(parameters, complete)
            if self._assembly.masters is not None:
                self._assembly.masters.take_gradients()

    def unscale(self, parameters: Mapping[str, nn.Parameter], complete: dict[str, Tensor]) -> bool:
        """Undoes the scaling of new gradients, and drops all until the next update once some have overflowed:
        an update from a part of them would be another one.

        Args:
            parameters: with the new gradients.
            complete: earlier ones since the last update.

        Returns:
            Whether the new ones are finite.
        """
        is_finite = self._loss_scale.unscale(parameters, self._mesh)
        self._has_overflowed = self._has_overflowed or not is_finite
        if self._has_overflowed:
            complete.clear()
            masters = self._assembly.masters
            for parameter in (*parameters.values(), *(masters.parameters.values() if masters else ())):
                parameter.grad = None
        return is_finite


class _StagesBackward:
    """The backward pass of the stages from some outputs; runs once."""

    def __init__(
        self, driving: Driving, roots: Sequence[Tensor], label: str, dtype: torch.dtype | None
    ) -> None:
        self._driving = driving
        self._roots: Sequence[Tensor] | None = roots
        self._label = label
        self._dtype = dtype

    def outputs(self) -> tuple[Tensor, ...]:
        """The outputs, cut off from what led to them."""
        assert self._roots is not None
        return tuple(root.detach().to(self._dtype or root.dtype) for root in self._roots)

    def run(self, gradients: Sequence[Tensor | None]) -> None:
        """Runs it, from the gradients of the outputs."""
        if self._roots is None:
            raise UsageError(
                "backward() came a second time to the same outputs of the model, whose intermediate values"
                " are freed; call the model again, or add the losses up before backward()"
            )
        reached = [(x, g) for x, g in zip(self._roots, gradients, strict=True) if g is not None]
        self._roots = None
        self._driving.run_backward([x for x, _ in reached], [g for _, g in reached], self._label)


class _Boundary(torch.autograd.Function):
    """Between the graph of the stages and that of the user."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, backward: _StagesBackward) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.stages = backward
        return backward.outputs()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
        ctx.stages.run(gradients)
        return None, None
