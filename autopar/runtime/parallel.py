"""``parallelize``: a model, a plan and the ranks of a run become one module that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autopar.capture.model_graph import ModelGraph
from autopar.capture.target import ModelSource, load_target, source_from_functions
from autopar.errors import PlanError, UsageError
from autopar.lower.resolve import missing_decisions, resolve
from autopar.plan.decisions import Plan
from autopar.plan.read import read_plan
from autopar.runtime.assemble import assemble
from autopar.runtime.capture_apart import capture_apart
from autopar.runtime.grad_modes import outside_inference_mode
from autopar.runtime.heap import keep_pages
from autopar.runtime.initialise import Init, Initialisation, InitialState
from autopar.runtime.launch import check_world_size, gather_ranks, in_common, join
from autopar.runtime.mesh import make_mesh
from autopar.runtime.options import Options
from autopar.runtime.parallel_model import ParallelModel
from autopar.runtime.watchdog import Watchdog

__all__ = ["ParallelModel", "check_complete", "parallelize", "start"]


@outside_inference_mode()
def parallelize(
    build_model: Callable[[], nn.Module],
    plan: str | Path | Plan,
    *,
    loss: Callable[[Any, dict[str, Tensor]], Tensor] | None = None,
    example_batch: Callable[[int], dict[str, Tensor]] | None = None,
    batch_dims: Mapping[str, int | None] | None = None,
    seed: int = 0,
    init: Init = Initialisation.SEEDED,
    dtype: torch.dtype | None = None,
    timeout_s: float = 600.0,
    device: torch.device | str | None = None,
    profile: str | Path | None = None,
) -> ParallelModel:
    """Makes this rank's part of a model under a complete plan; every rank calls it, with the same arguments.

    Args:
        build_model: builds the plain model; run without allocating it. If it reads weights from files itself,
            it runs once more on every rank, which then holds the whole model in host memory until its own
            part is filled; ``init`` reads files without that.
        plan: a plan file, or a plan.
        loss: (output, batch) -> scalar; None where the module returns the loss, or the plan's model file has
            one.
        example_batch: batch size -> one batch; default: of the model file that the plan names.
        batch_dims: batch entry -> dim of the samples where it is not 0; None where the entry is the same for
            all samples.
        seed: of starting weights and dropout; the same weights come under every plan.
        init: ``seeded``; ``exact`` for the values of ``torch.manual_seed(seed); build_model()``; or weights,
            of which each rank reads its own: a state dict, the file of one (``torch.save`` or safetensors),
            a folder with ``model.safetensors`` or its index, or a checkpoint.
        dtype: compute dtype instead of the plan's precision.
        timeout_s: of every wait for another rank; more than 0.
        device: default: this rank's GPU (``LOCAL_RANK``), else the CPU. On a CPU under Linux the process then
            keeps the heap pages that a step frees for the next one, unless ``MALLOC_TRIM_THRESHOLD_``,
            ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TOP_PAD_`` or ``GLIBC_TUNABLES`` is set.
        profile: file to which rank 0 writes the second step of every rank, and the same step as the simulator
            plays it, for ui.perfetto.dev.

    Raises:
        PlanError: the plan is incomplete, or not for this model.
        UsageError: the number of processes is not the plan's, the model cannot be built, the weights are
            not its own, or ``timeout_s`` is no time.
        DistributedError: ranks differ in plan or model, or one does not come.
    """
    _check_builds(build_model)
    checked = plan if isinstance(plan, Plan) else read_plan(Path(plan))
    check_complete(checked)
    source = _source(build_model, checked, loss, example_batch, batch_dims)
    options = Options(
        seed=seed,
        init=init,
        dtype=dtype,
        timeout_s=timeout_s,
        device=None if device is None else torch.device(device),
        profile=None if profile is None else Path(profile),
    )
    check_world_size(checked)
    dtype, device = options.compute_dtype(checked), options.choose_device()
    graph = capture_apart(source, dtype, checked.micro_batch or 1, device)
    return start(checked, graph, source.build_model, options)


def start(
    plan: Plan, graph: ModelGraph, build_model: Callable[[], nn.Module], options: Options
) -> ParallelModel:
    """Makes this rank's part from a captured graph; a collective of all ranks."""
    mesh = plan.mesh
    assert mesh.pipeline and mesh.data and mesh.tensor
    resolved = resolve(plan, graph)
    device = options.choose_device()
    initial = InitialState(build_model, options.seed, options.init)
    meeting = gather_ranks(options, device)
    watchdog = Watchdog(meeting, options.timeout_s)
    try:
        watchdog.agree("start", in_common(plan, graph.fingerprint, options))
        with watchdog.guard("joining the process group"):
            join(meeting, options, device)
        with watchdog.guard("building the stage"):
            timeout = timedelta(seconds=options.timeout_s)
            rank_mesh = make_mesh(
                mesh.pipeline,
                mesh.data,
                mesh.tensor,
                device,
                timeout,
                order=mesh.order,
                shard_group=plan.shard_group,
                shards_alone="parameters" in plan.offloaded,
            )
            assembly = assemble(resolved, initial, rank_mesh, options, watchdog)
            assembly.executor.connect(plan.num_micro_batches)
        if device.type == "cpu" and not plan.compile:
            keep_pages()  # after what building the stage took and left
    except BaseException:
        watchdog.stop("has stopped in parallelize()")
        raise
    return ParallelModel(plan, graph, assembly, rank_mesh, options, watchdog)


def check_complete(plan: Plan) -> None:
    """Refuses a plan that leaves something to the solver.

    Raises:
        PlanError: names what is missing and the command that completes it.
    """
    missing = missing_decisions(plan)
    if missing:
        target = plan.model.source if plan.model else "MODEL"
        with_plan = f" --with {plan.path}" if plan.path else ""
        raise PlanError(
            f"the plan leaves open: {', '.join(missing)}; complete it with: autopar plan"
            f" {target}{with_plan} -o full.yaml",
            path=plan.path,
        )


def _check_builds(build_model: object) -> None:
    is_model = isinstance(build_model, nn.Module)
    if is_model or not callable(build_model):
        kind = type(build_model).__name__
        raise UsageError(
            f"parallelize() was given a {kind}, not a function: give a function that builds the model, as"
            f" parallelize(lambda: {kind if is_model else 'Model'}(...), plan); each rank makes its own part"
        )


def _source(
    build_model: Callable[[], nn.Module],
    plan: Plan,
    loss: Callable[[Any, dict[str, Tensor]], Tensor] | None,
    example_batch: Callable[[int], dict[str, Tensor]] | None,
    batch_dims: Mapping[str, int | None] | None,
) -> ModelSource:
    if example_batch is not None:
        return source_from_functions(build_model, example_batch, loss, batch_dims)
    if plan.model is None:
        raise UsageError("parallelize() needs example_batch: the plan names no model file to take it from")
    found = load_target(plan.model.source, plan.model.args)
    return source_from_functions(
        build_model, found.example_batch, loss or found.loss, {**found.batch_dims, **(batch_dims or {})}
    )
