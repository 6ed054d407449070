"""One rank of a verification: trains under the plan; rank 0 compares with the reference every step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from autopar.capture.model_graph import ModelGraph
from autopar.capture.target import ModelSource
from autopar.plan.decisions import Plan
from autopar.runtime.carried_buffers import carried_buffers
from autopar.runtime.initialise import Initialisation
from autopar.runtime.options import Options
from autopar.runtime.parallel import ParallelModel, start
from autopar.verify.compare import Comparison
from autopar.verify.reference import Reference
from autopar.verify.report import VerifyReport
from autopar.verify.rounding import RoundedReferences

_LEARNING_RATE = 1e-3
# More than usual: a gradient that is zero but for rounding must not be blown up to a step of its own size.
_EPSILON = 1e-5
_MOST_OVERFLOWS = 16


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """How a plan is verified.

    Attributes:
        num_steps: steps that are compared; between them, updates of AdamW.
        tolerance: largest relative error that counts as equal.
        timeout_s: of the whole run.
        seed, init: of the starting weights.
        dtype: what both sides compute in; below float64, ``rounding.py`` says how they are compared.
    """

    num_steps: int = 3
    tolerance: float = 1e-9
    timeout_s: float = 600.0
    seed: int = 0
    init: Initialisation | str = Initialisation.SEEDED
    dtype: torch.dtype = torch.float64


def verify_rank(
    plan: Plan, source: ModelSource, graph: ModelGraph, options: VerifyOptions, notes: tuple[str, ...] = ()
) -> VerifyReport | None:
    """Runs one rank; every rank of the default process group calls it.

    Args:
        graph: captured in the options' dtype at the plan's micro-batch, without dropout.

    Returns:
        The report on rank 0, None elsewhere.
    """
    run_options = Options(
        seed=options.seed,
        init=options.init,
        dtype=options.dtype,
        timeout_s=options.timeout_s,
        device=torch.device("cpu"),
    )
    model = start(plan, graph, source.build_model, run_options)
    run = _Run(model, plan, source, graph, options)
    try:
        found = _compare(run) if options.dtype is torch.float64 else _compare_rounded(run)
    finally:
        model.close()
    if found is None:
        return None
    return VerifyReport(
        num_steps=options.num_steps,
        tolerance=found.allowed if isinstance(found, RoundedReferences) else options.tolerance,
        worst_loss_error=found.worst_loss_error,
        worst_gradient_error=found.worst_gradient_error,
        worst_parameter=found.worst_parameter,
        missing=tuple(found.missing),
        worst_buffer_error=found.worst_buffer_error,
        notes=notes,
        carried_buffers=tuple(sorted(carried_buffers(graph.blocks))) if model.data_world_size > 1 else (),
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """What is compared."""

    model: ParallelModel
    plan: Plan
    source: ModelSource
    graph: ModelGraph
    options: VerifyOptions

    def batch(self, step: int) -> dict[str, Tensor]:
        """The global batch of a step; a collective of all ranks."""
        return _shared_batch(self.source, self.plan, self.options.seed + step)

    def share(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What this rank trains on."""
        return share_of(batch, self.graph.batch_dims, self.model.data_rank, self.model.data_world_size)

    def micro_batches(self, batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """What one process trains on."""
        return micro_batches_of(batch, self.graph.batch_dims, self.graph.micro_batch)


def _compare(run: _Run) -> Comparison | None:
    model, options = run.model, run.options
    is_first = dist.get_rank() == 0
    keys = list(run.graph.batch)
    reference = Reference(run.source, keys, seed=options.seed, init=options.init) if is_first else None
    optimizers = [_optimizer(model.parameters())]
    if reference is not None:
        optimizers.append(_optimizer(reference.model.parameters()))
    comparison = Comparison()
    for step in range(options.num_steps):
        batch = run.batch(step)
        loss = model.step(run.share(batch))
        if reference is not None:
            comparison.add_loss(loss.item(), reference.step(run.micro_batches(batch)))
            comparison.add_gradients(model.whole_gradients(), reference.gradients())
        else:
            for _ in model.whole_gradients():
                pass
        if step == options.num_steps - 1:
            break  # nothing looks at weights any more
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    if model.data_world_size == 1:
        buffers = model.whole_buffers()
        comparison.add_buffers(buffers, reference.buffers() if reference is not None else {})
    return comparison if is_first else None


def _compare_rounded(run: _Run) -> RoundedReferences | None:
    model, options = run.model, run.options
    references = None
    if dist.get_rank() == 0:
        keys, init = list(run.graph.batch), str(options.init)
        references = RoundedReferences(run.source, keys, options.dtype, options.seed, init)
    optimizer = _optimizer(model.parameters())
    for step in range(options.num_steps):
        weights = dict(model.whole_parameters())
        batch = run.batch(step)
        share = run.share(batch)
        for _ in range(_MOST_OVERFLOWS):
            loss = model.step(share)
            gradients = dict(model.whole_gradients())
            if any(value is not None for value in gradients.values()):
                break
            # fp16 gradients overflowed: an update of nothing, and the next attempt scales the loss less.
            optimizer.step()
        if references is not None:
            references.take_weights({name: value for name, value in weights.items() if value is not None})
            references.compare(loss.item(), gradients, run.micro_batches(batch))
        if step == options.num_steps - 1:
            break
        optimizer.step()
        optimizer.zero_grad()
    return references


def _optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=_LEARNING_RATE, eps=_EPSILON)


def share_of(
    batch: Mapping[str, Tensor], batch_dims: Mapping[str, int | None], index: int, num_shares: int
) -> dict[str, Tensor]:
    """One of ``num_shares`` equal shares of a batch, in the order of the samples."""
    dims = {key: batch_dims.get(key, 0) for key in batch}
    return {
        key: value if (dim := dims[key]) is None else value.chunk(num_shares, dim)[index]
        for key, value in batch.items()
    }


def micro_batches_of(
    batch: Mapping[str, Tensor], batch_dims: Mapping[str, int | None], micro_batch: int
) -> list[dict[str, Tensor]]:
    """A global batch as micro-batches, in the order of the samples."""
    count = next(
        value.shape[dim] // micro_batch
        for key, value in batch.items()
        if (dim := batch_dims.get(key, 0)) is not None
    )
    return [share_of(batch, batch_dims, index, count) for index in range(count)]


def _shared_batch(source: ModelSource, plan: Plan, seed: int) -> dict[str, Tensor]:
    # Made once and handed on: example_batch may draw from a source of randomness that we do not know.
    shared: list[Any] = [None]
    if dist.get_rank() == 0:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shared[0] = source.example_batch(plan.global_batch or 1)
    dist.broadcast_object_list(shared, src=0)
    batch: dict[str, Tensor] = shared[0]
    return batch
