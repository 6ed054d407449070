"""A model under a plan as a training script holds it: steps, clipping, checkpoints, whole tensors."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.model_graph import ModelGraph
from autopar.errors import UsageError
from autopar.plan.decisions import Plan
from autopar.runtime.assemble import Assembly
from autopar.runtime.batches import check_counts, count_micro_batches, split_batch
from autopar.runtime.driving import Driving
from autopar.runtime.first_step import report_first_step
from autopar.runtime.grad_modes import check_trains, outside_inference_mode
from autopar.runtime.gradients import GradientNorm, add_back, scale_gradients, set_aside
from autopar.runtime.heap import keep_pages
from autopar.runtime.loss_scale import LossScale
from autopar.runtime.mean_loss import MeanLoss
from autopar.runtime.mesh import RankMesh
from autopar.runtime.optimizer_reach import check_dispatch, check_groups, check_reach
from autopar.runtime.optimizer_watch import OptimizerWatch
from autopar.runtime.options import Options
from autopar.runtime.outputs import ModelOutputs
from autopar.runtime.seeds import Seeds, block_seeds
from autopar.runtime.step_trace import SecondStep
from autopar.runtime.trained import TrainedParameters
from autopar.runtime.watchdog import Watchdog
from autopar.runtime.whole_state import WholeState
from autopar.runtime.whole_tensors import WholeTensors

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
"""One, or several that each hold parameters of their own."""


class ParallelModel(WholeTensors):
    """This rank's part of a model that trains under a plan; made by :func:`parallelize`.

    ``parameters()`` and ``named_parameters()`` give this rank's pieces under the model's own names, for an
    optimiser.

    Attributes:
        data_rank: which share of every batch this rank trains on.
        data_world_size: number of shares.
        num_steps: calls of ``step`` (of a driven model, updates) so far, counted on from a checkpoint.
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
        super().__init__(mesh.device)
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
        self._traces = SecondStep(options.profile, assembly.executor, mesh, plan.num_micro_batches)
        stored = assembly.stages.forms()
        self._loss_scale = LossScale(options.compute_dtype(plan))
        self._norm = GradientNorm(mesh, stored, assembly.sharded, assembly.tied)
        # Optimisers refuse an empty list, as that of a stage that trains nothing (a loss alone, or frozen).
        trains = any(form.requires_grad for form in stored.values())
        self._stand_in = None if trains else nn.Parameter(torch.zeros(0, device=mesh.device))
        self._trained = TrainedParameters(assembly)
        self._whole = WholeState(assembly, mesh, self._trained.named)
        self._driving = Driving(assembly, mesh, self._loss_scale, self._driven_backward)
        self._outputs = ModelOutputs(graph, assembly, mesh, self._driving)
        self._num_driven = 0  # micro-batches since the last update
        # What a compiler takes in the first step and leaves is given back before.
        self._keeps_pages_later = plan.compile and mesh.device.type == "cpu"
        self._optimizers = OptimizerWatch(self.parameters, self._approve, self._note_update)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's parameters under the model's own names (of tied ones, the first)."""
        for name, parameter in self._trained.named().items():
            yield (f"{prefix}.{name}" if prefix else name), parameter
        if self._stand_in is not None:
            yield "no_parameters", self._stand_in

    def forward(self, *args: Any, on_every_rank: bool = False, **batch: Tensor) -> Any:
        """What the user's module returns for this data rank's samples: any number of micro-batches.

        Under a plan without a pipeline the model may be driven like any module, as with
        DistributedDataParallel: ``loss_of(model(**batch)).backward()`` leaves gradients averaged over the
        data ranks; several forward passes before an update add up (see ``no_sync``). Under a pipeline,
        outputs come under ``torch.no_grad()`` or ``torch.inference_mode()`` only. ``train()`` and ``eval()``
        are respected.

        Under fp16, outputs that lead to a backward pass come in float32, and it is scaled by itself, without
        ``torch.amp.GradScaler``: an update some of whose gradients overflow finds none.

        Args:
            args: none; entries are given by name.
            on_every_rank: bring the outputs to all ranks of a pipeline, not to that of the last stage alone.
            batch: entries by key. Outputs for which entries are missing (the loss without the labels) are
                None; one that the captured loss does not depend on is an object that says so when it is used.

        Returns:
            Tensors in the structure of the module's output; None on ranks of a pipeline without the last
            stage. Of several micro-batches, samples are joined and losses averaged.

        Raises:
            UsageError: the batch does not fit, or what is asked for cannot be had under the plan.
            DistributedError: another rank failed or did not answer; names it.
        """
        if args:
            raise UsageError(
                "the model takes the entries of a batch by name: call it as model(**batch); or train with"
                " step(batch)"
            )
        label = f"forward pass after step {self.num_steps - 1}"
        with self._surroundings(label):
            self._optimizers.check()
            if torch.is_grad_enabled():
                self._trained.check_frozen()
            self._trained.take_over_changes()
            self._assembly.shared_buffers.share()
            if self.training and self._driving.synchronises:
                self._assembly.shared_buffers.note_change()
            return self._outputs.compute(batch, self._next_seeds, on_every_rank, label)

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, backward passes of a model driven like a module keep their gradients to themselves; the
        first one outside synchronises the sum.

        This saves communication under ZeRO 0 and 1. Until then ``zero_grad()`` of the optimiser does not see
        these gradients; ``model.zero_grad()`` drops them.
        """
        return self._driving.no_sync()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drops all gradients, those that wait to be synchronised among them."""
        super().zero_grad(set_to_none)
        self._driving.forget()

    def step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Forward and backward of all micro-batches of this data rank's share of a step; gradients are then
        complete.

        Args:
            batch: entries by key, ``micro_batch x num_micro_batches`` samples each; the same on every rank of
                equal ``data_rank``.

        Returns:
            Mean loss over all samples, a detached scalar, equal on every rank. Under fp16 the backward pass
            is scaled; once gradients overflow, there are none until the optimiser is stepped, which then
            changes nothing.

        Raises:
            UsageError: the batch does not fit, no optimiser holds the model's parameters, some were frozen
                since, or gradients are switched off.
            DistributedError: another rank failed or did not answer; names it.
        """
        if not self.training:
            raise UsageError("step() trains, and the model is in evaluation mode; call model.train() first")
        num_micro_batches = self._plan.num_micro_batches
        parameters = dict(self.stages.named_originals())
        label = f"step {self.num_steps}"
        began_s, mean = time.perf_counter(), MeanLoss(self._mesh, label)
        with self._guard(label), self._traces.around() as work:
            check_trains()
            self._optimizers.check()
            self._trained.check_frozen()
            batches = split_batch(batch, self._graph, num_micro_batches, self._mesh.device)
            with self._own_randomness():
                self._trained.take_over()
                earlier = set_aside(parameters)
                seeds, factor = self._seeds(0, num_micro_batches), self._loss_scale.factor
                self._assembly.executor.run(batches, seeds, label, mean.give, factor)
            self._watchdog.at(f"{label}, gradient averaging")
            with work("synchronise gradients"):
                self._assembly.synchronise_gradients(self._mesh)
                self._assembly.shared_buffers.note_change()
                self._assembly.shared_buffers.share()
            if self._loss_scale.is_active:
                self._loss_scale.update(self._driving.unscale(parameters, earlier))
            add_back(parameters, earlier)
            if self._assembly.masters is not None:
                self._assembly.masters.take_gradients()
            loss = mean.wait()
        if self.num_steps == 0:
            report_first_step(self._plan, self._mesh, time.perf_counter() - began_s)
        self.num_steps += 1
        self._optimizers.begin()
        return loss

    def eval_step(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Forward pass alone, without gradients: dropout off, BatchNorm by its running statistics.

        Args:
            batch: entries by key; any multiple of the micro-batch, as many samples on every rank.

        Returns:
            Mean loss over all samples of all data ranks, equal on every rank.

        Raises:
            UsageError: the batch does not fit, ranks give different numbers of samples, or the model draws
                random numbers otherwise than by dropout.
            DistributedError: another rank failed or did not answer; names it.
        """
        label = f"eval_step after step {self.num_steps - 1}"
        mode, mean = self.stages.training, MeanLoss(self._mesh, label)
        with self._guard(label):
            count = count_micro_batches(batch, self._graph, "eval_step()")
            batches = split_batch(batch, self._graph, count, self._mesh.device, "eval_step()")
            check_counts(count, self._mesh, label)
            self._trained.take_over()
            self._assembly.shared_buffers.share()
            self.stages.eval()
            try:
                with self._own_randomness():
                    self._assembly.executor.evaluate(batches, label, mean.give)
            finally:
                self.stages.train(mode)
            for replicas in self._assembly.replicas:
                replicas.after_evaluation()
            return mean.wait()

    def clip_grad_norm_(self, max_norm: float) -> Tensor:
        """Scales all gradients so that their 2-norm over the whole model is at most ``max_norm``.

        Returns:
            The norm before, the same on every rank and as in one process.
        """
        parameters = self._trained.named()
        label = f"clip_grad_norm_ after step {self.num_steps - 1}"
        with self._guard(label):
            norm = self._norm.total(parameters, label)
            # Coefficient as in torch.nn.utils.clip_grads_with_norm_.
            scale_gradients(list(parameters.values()), torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm

    def save(self, path: str | Path, optimizer: Optimizers | None = None) -> None:
        """Writes a checkpoint of the model (and its optimiser) that loads under any plan; all ranks call it.

        Args:
            path: of the folder.
            optimizer: one, or several, each with parameters of its own.

        Raises:
            UsageError: the optimiser holds other parameters.
        """
        # torch.distributed.checkpoint brings 80 modules, which most of a run does without.
        from autopar.runtime.checkpoint import save_checkpoint

        parameters = self._trained.named()
        with self._guard_together(f"save to {path}"):
            buffers = self._whole.own_buffers() if self._mesh.here.data == 0 else {}
            scale = self._loss_scale.state
            layout = self._assembly.layout
            group = self._mesh.world_group
            optimizers = _several(optimizer)
            save_checkpoint(path, parameters, buffers, optimizers, self.num_steps, layout, group, scale)

    def load(self, path: str | Path, optimizer: Optimizers | None = None) -> None:
        """Reads what ``save`` wrote, under this plan or any other; all ranks call it.

        Args:
            path: of the folder.
            optimizer: as given to ``save``; None leaves its state out.

        Raises:
            UsageError: no such checkpoint, another model's, or an optimiser of another class or with other
                parameters.
        """
        from autopar.runtime.checkpoint import load_checkpoint

        parameters = self._trained.named()
        with self._guard_together(f"load from {path}"):
            scale, group = self._loss_scale.state, self._mesh.world_group
            buffers = self._whole.own_buffers()
            optimizers = _several(optimizer)
            self.num_steps = load_checkpoint(path, parameters, buffers, optimizers, group, scale)
            self._loss_scale.restore(scale)
        self._optimizers.settle()
        self._driving.forget_overflow()
        self._trained.forget()
        self._num_driven = 0

    def close(self) -> None:
        """Ends the heartbeats of this rank and its process groups; the default group stays.

        Nothing can be done with the model afterwards; closing it again does nothing.
        """
        if self._watchdog.is_stopped:
            return
        self._optimizers.close()
        self._watchdog.stop()
        self._assembly.close()
        self._mesh.close()

    @contextmanager
    def _guard(self, label: str) -> Iterator[None]:
        """Around whatever the user calls that other ranks take part in."""
        with outside_inference_mode(), self._watchdog.guard(label):
            yield

    @contextmanager
    def _guard_together(self, label: str) -> Iterator[None]:
        """As ``_guard``, for what scripts like to call on rank 0 alone; its first word is compared."""
        with self._guard(label):
            self._watchdog.gather(label.partition(" ")[0])
            yield

    def _own_randomness(self) -> AbstractContextManager[None]:
        """What is drawn inside leaves the caller's generators alone."""
        devices = [self._mesh.device] if self._mesh.device.type == "cuda" else []
        return torch.random.fork_rng(devices=devices)

    @contextmanager
    def _surroundings(self, label: str) -> Iterator[None]:
        """Around work of the model that the user's own code calls."""
        with self._guard(label), self._own_randomness():
            yield

    @contextmanager
    def _driven_backward(self, label: str) -> Iterator[None]:
        """Around the backward pass of a model that the user drives."""
        with self._surroundings(label):
            yield
        self._optimizers.begin()

    def _next_seeds(self, num_micro_batches: int) -> Seeds:
        """Of micro-batches that the user drives, counted since the last update as those of a step.

        Evaluation draws nothing, and does not count: what is drawn next is as without it.
        """
        first = self._num_driven
        if self.training:
            self._num_driven += num_micro_batches
        return self._seeds(first, num_micro_batches)

    def _seeds(self, first: int, num_micro_batches: int) -> Seeds:
        indices = range(first, first + num_micro_batches)
        usual = self._plan.num_micro_batches
        return block_seeds(self.stages, self._options.seed, self.num_steps, self.data_rank, usual, indices)

    def _approve(self, optimizer: torch.optim.Optimizer) -> None:
        parameters, forms = self._trained.named(), self.stages.forms()
        check_reach(optimizer, parameters, forms, self._mesh.pipeline)
        check_dispatch(optimizer, parameters)
        check_groups(optimizer, parameters, forms)

    def _note_update(self) -> None:
        self._num_driven = 0
        if self._driving.note_update():
            self.num_steps += 1
        if self._keeps_pages_later:
            self._keeps_pages_later = False
            keep_pages()


def _several(optimizer: Optimizers | None) -> tuple[torch.optim.Optimizer, ...]:
    if optimizer is None:
        return ()
    return (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)
