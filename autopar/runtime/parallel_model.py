"""A model under a plan as a training script holds it: steps, clipping, checkpoints, whole tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from autopar.capture.model_graph import ModelGraph
from autopar.errors import UsageError
from autopar.plan.decisions import Plan
from autopar.runtime.assemble import Assembly
from autopar.runtime.batches import count_micro_batches, split_batch
from autopar.runtime.checkpoint import load_checkpoint, save_checkpoint
from autopar.runtime.executor import mean_loss
from autopar.runtime.first_step import report_first_step
from autopar.runtime.gather import gather
from autopar.runtime.gradients import GradientNorm, add_back, scale_gradients, set_aside
from autopar.runtime.initialise import hash_seed
from autopar.runtime.loss_scale import LossScale, all_finite
from autopar.runtime.mesh import RankMesh
from autopar.runtime.options import Options
from autopar.runtime.step_trace import StepTrace
from autopar.runtime.storage import on_device
from autopar.runtime.watchdog import Watchdog


class ParallelModel(nn.Module):
    """This rank's part of a model that trains under a plan; made by :func:`parallelize`.

    ``parameters()`` and ``named_parameters()`` give this rank's pieces under the model's own names, for an
    optimiser.

    Attributes:
        data_rank: which share of every batch this rank trains on.
        data_world_size: number of shares.
        num_steps: calls of ``step`` so far, counted on from a checkpoint.
    """

    def __init__(
        self,
        plan: Plan,
        graph: ModelGraph,
        assembly: Assembly,
        mesh: RankMesh,
        options: Options,
        watchdog: Watchdog,
    ) -> None:
        super().__init__()
        self._plan = plan
        self._graph = graph
        self._assembly = assembly
        self._mesh = mesh
        self._options = options
        self._watchdog = watchdog
        self.stages = assembly.stages
        self.data_rank = mesh.here.data
        self.data_world_size = mesh.data
        self.num_steps = 0
        self._num_calls = 0  # of step in this process; num_steps goes on from a checkpoint
        stored = assembly.stages.forms()
        self._loss_scale = LossScale(options.compute_dtype(plan))
        self._norm = GradientNorm(mesh, stored, assembly.sharded, assembly.tied)
        # Optimisers refuse an empty list: a stage without parameters (a loss alone) gives an empty one.
        self._stand_in = None if stored else nn.Parameter(torch.zeros(0, device=mesh.device))
        self._foreign_optimizer = ""
        self._is_updated = True
        self._hook = register_optimizer_step_post_hook(self._note_update)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters under the model's own names (of tied ones, the first)."""
        for name, parameter in self._trained().items():
            yield (f"{prefix}.{name}" if prefix else name), parameter
        if self._stand_in is not None:
            yield "no_parameters", self._stand_in

    def forward(self, *_: Any, **__: Any) -> Tensor:
        """Not offered: a pipeline has no forward pass alone.

        Raises:
            UsageError: always; says what to call.
        """
        raise UsageError(
            "a parallel model runs forward and backward together: call step(batch) to train, or"
            " eval_step(batch) for the loss alone"
        )

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]
        """Not offered: this rank holds pieces only.

        Raises:
            UsageError: always; says what to call.
        """
        raise UsageError(
            "a parallel model has no state_dict() of its own: call save(path) for a checkpoint, or"
            " full_state_dict() for whole tensors on every rank"
        )

    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Forward and backward of all micro-batches of this data rank's share of a step; gradients are then
        complete.

        Args:
            batch: entries by key, ``micro_batch x num_micro_batches`` samples each; the same on every rank of
                equal ``data_rank``.

        Returns:
            Mean loss over all samples, a detached scalar, equal on every rank. Under fp16 the backward pass
            is scaled; a step whose gradients overflow leaves none, so that the optimiser changes nothing.

        Raises:
            UsageError: the batch does not fit, or no optimiser holds the model's parameters.
            DistributedError: another rank failed or did not answer; names it.
        """
        if not self.training:
            raise UsageError("step() trains, and the model is in evaluation mode; call model.train() first")
        num_micro_batches = self._plan.num_micro_batches
        parameters = dict(self.stages.named_originals())
        label = f"step {self.num_steps}"
        began_s = time.perf_counter()
        with self._watchdog.guard(label), self._traced() as work:
            self._check_optimizer()
            batches = split_batch(batch, self._graph, num_micro_batches, self._mesh.device)
            with self._own_randomness():
                self._take_over_updates()
                earlier = set_aside(parameters)
                seeds, factor = self._seeds(num_micro_batches), self._loss_scale.factor
                loss = self._assembly.executor.run(batches, seeds, label, factor)
            self._watchdog.at(f"{label}, gradient averaging")
            with work("synchronise gradients"):
                self._assembly.synchronise_gradients(self._mesh)
            if self._loss_scale.is_active:
                self._unscale(parameters)
            add_back(parameters, earlier)
            if self._assembly.masters is not None:
                self._assembly.masters.take_gradients()
            total = mean_loss(loss, self._mesh)
        if self.num_steps == 0:
            report_first_step(self._plan, self._mesh, time.perf_counter() - began_s)
        self.num_steps += 1
        self._is_updated = False
        self._foreign_optimizer = ""
        return total

    def eval_step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Forward pass alone, without gradients: dropout off, BatchNorm by its running statistics.

        Args:
            batch: entries by key; any multiple of the micro-batch, as many samples on every rank.

        Returns:
            Mean loss over all samples of all data ranks, equal on every rank.

        Raises:
            UsageError: the batch does not fit, or the model draws random numbers otherwise than by dropout.
            DistributedError: another rank failed or did not answer; names it.
        """
        label = f"eval_step after step {self.num_steps - 1}"
        mode = self.stages.training
        with self._watchdog.guard(label):
            count = count_micro_batches(batch, self._graph, "eval_step()")
            batches = split_batch(batch, self._graph, count, self._mesh.device, "eval_step()")
            self._take_over_updates()
            self.stages.eval()
            try:
                with self._own_randomness():
                    loss = self._assembly.executor.evaluate(batches, label)
            finally:
                self.stages.train(mode)
            for replicas in self._assembly.replicas:
                replicas.after_evaluation()
            return mean_loss(loss, self._mesh)

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scales all gradients so that their 2-norm over the whole model is at most ``max_norm``.

        Returns:
            The norm before, the same on every rank and as in one process.
        """
        parameters = self._trained()
        with self._watchdog.guard(f"clip_grad_norm_ after step {self.num_steps - 1}"):
            norm = self._norm.total(parameters)
        # Coefficient as in torch.nn.utils.clip_grads_with_norm_.
        scale_gradients(list(parameters.values()), torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm

    def save(self, path: str | Path, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Writes a checkpoint of the model (and its optimiser) that loads under any plan; all ranks call it.

        Raises:
            UsageError: the optimiser holds other parameters.
        """
        parameters = self._trained()
        with self._watchdog.guard(f"save to {path}"):
            buffers = self._saved_buffers() if self._mesh.here.data == 0 else {}
            scale = self._loss_scale.state
            save_checkpoint(path, parameters, buffers, optimizer, self.num_steps, scale)

    def load(self, path: str | Path, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Reads what ``save`` wrote, under this plan or any other; all ranks call it.

        Raises:
            UsageError: no such checkpoint, another model's, or an optimiser with other parameters.
        """
        parameters = self._trained()
        with self._watchdog.guard(f"load from {path}"):
            scale = self._loss_scale.state
            self.num_steps = load_checkpoint(path, parameters, self._saved_buffers(), optimizer, scale)
            self._loss_scale.restore(scale)
        self._is_updated = True

    def full_state_dict(self) -> dict[str, Tensor]:
        """Whole parameters and persistent buffers as the plain model's ``load_state_dict`` takes them, on
        every rank.

        A collective of all ranks. Buffers are those of data rank 0.
        """
        found: dict[str, Tensor] = {}
        with self._watchdog.guard("full_state_dict"):
            for name, value in self.whole_parameters():
                assert value is not None
                for alias in (name, *self._assembly.aliases[name]):
                    found[alias] = value
            found.update({name: value for name, value in self.whole_buffers() if value is not None})
        return found

    def full_gradients(self) -> dict[str, Tensor]:
        """Whole gradients by canonical parameter name, on every rank; parameters without one are left out.

        A collective of all ranks.
        """
        with self._watchdog.guard("full_gradients"):
            return {name: value for name, value in self.whole_gradients() if value is not None}

    def whole_parameters(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole parameters one at a time, to be consumed by all ranks alike."""
        return self._whole(self._trained().get)

    def whole_gradients(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole gradients one at a time (None where there is none), to be consumed by all ranks alike."""
        own = self._trained()
        return self._whole(lambda name: own[name].grad)

    def whole_buffers(self) -> Iterator[tuple[str, Tensor | None]]:
        """Whole persistent buffers one at a time, to be consumed by all ranks alike."""
        buffers = self._saved_buffers()
        ranks = self._assembly.buffer_ranks
        names = [name for name in ranks if name in self._assembly.persistent]
        return gather(names, ranks, self._assembly.buffer_forms, buffers.get, self._mesh)

    def close(self) -> None:
        """Ends the heartbeats of this rank and its process groups; the default group stays."""
        self._hook.remove()
        self._watchdog.stop()
        self._assembly.close()
        self._mesh.close()

    def _trained(self) -> dict[str, nn.Parameter]:
        """This rank's parameters as the optimiser changes them."""
        parameters = dict(self.stages.named_originals())
        masters = self._assembly.masters
        return parameters if masters is None else {**parameters, **masters.parameters}

    @contextmanager
    def _traced(self) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
        """Around a step: records the second one if that was asked for; yields what goes around work."""
        path, executor = self._options.profile, self._assembly.executor
        if path is None or self._num_calls != 1:
            yield lambda _: nullcontext()
        else:
            trace = StepTrace(path, self._mesh.device)
            watching, executor.observer = executor.observer, trace.action
            trace.begin(self._mesh)
            try:
                yield trace.work
            finally:
                executor.observer = watching
            trace.write(self._mesh, executor.schedule(self._plan.num_micro_batches), executor.num_stages)
        self._num_calls += 1

    def _own_randomness(self) -> AbstractContextManager[None]:
        """What is drawn inside leaves the caller's generators alone."""
        devices = [self._mesh.device] if self._mesh.device.type == "cuda" else []
        return torch.random.fork_rng(devices=devices)

    def _take_over_updates(self) -> None:
        """Lets the stages compute with what the optimiser has made of the parameters."""
        if self._assembly.masters is not None:
            self._assembly.masters.give_values()
        self.stages.refresh_guests()
        self._assembly.copies.refresh(dict(self.stages.named_originals()))

    def _unscale(self, parameters: Mapping[str, nn.Parameter]) -> None:
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        is_finite = all_finite(gradients, self._mesh)
        if is_finite:
            inverse = torch.tensor(1 / self._loss_scale.factor, device=self._mesh.device)
            scale_gradients(list(parameters.values()), inverse)
        else:
            # Without gradients, optimisers leave parameters and their own state as they are.
            for parameter in parameters.values():
                parameter.grad = None
        self._loss_scale.update(is_finite)

    def _whole(self, piece: Callable[[str], Tensor | None]) -> Iterator[tuple[str, Tensor | None]]:
        ranks, computing = self._assembly.parameter_ranks, dict(self.stages.named_originals())

        def reachable(name: str) -> Tensor | None:
            found = piece(name)
            like = computing.get(name)
            mesh = like.device_mesh if isinstance(like, DTensor) else None
            return None if found is None else on_device(found.detach(), self._mesh.device, mesh)

        return gather(list(ranks), ranks, self.stages.forms(), reachable, self._mesh)

    def _saved_buffers(self) -> dict[str, Tensor]:
        forms = self._assembly.buffer_forms
        return {
            name: forms[name].wrap(value, self._mesh.tensor_mesh).detach()
            for name, value in self.stages.named_state().items()
            if name in self._assembly.persistent
        }

    def _seeds(self, num_micro_batches: int) -> dict[int, list[tuple[int, ...]]]:
        # By block and by micro-batch of the whole step: where a block runs does not change its random
        # numbers.
        first = self.data_rank * num_micro_batches
        return {
            stage: [
                tuple(
                    hash_seed(
                        self._options.seed,
                        "random operators",
                        self.num_steps,
                        first + index,
                        program.block.index,
                    )
                    for program in module.programs
                )
                for index in range(num_micro_batches)
            ]
            for stage, module in self.stages.items()
        }

    def _note_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        own = {id(parameter) for parameter in self.parameters()}
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if own & held:
            self._is_updated = True
        else:
            self._foreign_optimizer = type(optimizer).__name__

    def _check_optimizer(self) -> None:
        has_gradients = any(p.grad is not None for p in self._trained().values())
        if self._foreign_optimizer and not self._is_updated and has_gradients:
            raise UsageError(
                f"{self._foreign_optimizer} was stepped, but holds none of the parallel model's"
                " parameters; make the"
                " optimiser from model.parameters() after parallelize()"
            )
