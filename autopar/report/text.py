"""Tables for the terminal: what a plan does, stage by stage, and which plans were not chosen."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Protocol

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from autopar.cost.prediction import Prediction, StagePrediction
from autopar.plan.decisions import MESH_AXES, Mesh, Plan, ScheduleName
from autopar.plan.ranges import compact
from autopar.report.predicted import MEMORY_PURPOSES, format_percent, memory_of, status_text
from autopar.schedule.actions import rank_stages
from autopar.units import GiB, MiB, format_bytes, format_seconds

_BAR_CELLS = 16
_NARROWEST = 9
"""A column of text is folded, but to no less."""
_BETWEEN = 2
_SHORTER = {"parameters": "params", "gradients": "grads"}
_BLOCKS_WIDTH = 40


class NotChosen(Protocol):
    """A way of running the model that lost, and by what."""

    @property
    def mesh(self) -> Mesh:
        """Its degrees."""

    @property
    def micro_batch(self) -> int:
        """Samples per forward."""

    @property
    def schedule(self) -> ScheduleName:
        """Pipeline schedule."""

    @property
    def virtual(self) -> int:
        """Stages of a device."""

    @property
    def offload(self) -> str:
        """What lives in host memory."""

    @property
    def zero(self) -> int | tuple[int, ...]:
        """ZeRO level, of all stages or of each."""

    @property
    def step_time_s(self) -> float | None:
        """Predicted; None where it was not worked out."""

    @property
    def peak_memory_bytes(self) -> int | None:
        """Likewise."""

    @property
    def why_not(self) -> str:
        """A few words."""


class Baseline(Protocol):
    """A way of running the model that people write by hand."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def mesh(self) -> Mesh | None:
        """Its degrees; None where there is no such plan."""

    @property
    def micro_batch(self) -> int | None:
        """Samples per forward."""

    @property
    def zero(self) -> int | None:
        """ZeRO level."""

    @property
    def recompute(self) -> str | None:
        """One word for all blocks."""

    @property
    def step_time_s(self) -> float | None:
        """Predicted; None where it does not fit."""

    @property
    def peak_memory_bytes(self) -> int | None:
        """Likewise."""

    @property
    def remark(self) -> str:
        """How much slower than the plan, or why it does not fit."""


def render(parts: Iterable[RenderableType], *, is_terminal: bool, width: int) -> str:
    """The text of some tables and lines; with colours for a terminal.

    Args:
        width: in characters; a table whose numbers do not fit takes what it needs.
    """
    listed, file = list(parts), io.StringIO()
    needed = [_least_width(part) if isinstance(part, Table) else 0 for part in listed]
    console = Console(
        file=file,
        force_terminal=is_terminal,
        no_color=not is_terminal,
        width=max([width, *needed]),
        highlight=False,
    )
    for part, least in zip(listed, needed, strict=True):
        console.print(part, width=max(width, least))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _least_width(table: Table) -> int:
    """Characters that a table takes when its columns of text are folded to the least, and no number is."""
    widths = []
    for column in table.columns:
        cells = (column.header, *column.cells)
        longest = max(cell.cell_len if isinstance(cell, Text) else cell_len(str(cell)) for cell in cells)
        widths.append(longest if column.no_wrap else column.min_width or _NARROWEST)
    return sum(widths) + _BETWEEN * (len(widths) - 1)


def headline(
    plan: Plan, prediction: Prediction, status: str, gap: float | None, bound_s: float | None
) -> list[Text]:
    """Three lines: what was decided, how fast it is predicted to be, how sure that is."""
    mesh = plan.mesh
    micro_batches = (
        "1 micro-batch" if plan.num_micro_batches == 1 else f"{plan.num_micro_batches} micro-batches"
    )
    decided = (
        f"pipeline {mesh.pipeline} x data {mesh.data} x tensor {mesh.tensor}; "
        f"{micro_batches} of {plan.micro_batch}; ZeRO {_levels(plan.zero)}; "
        f"{plan.precision}{_unusual(plan)}"
    )
    speed = (
        f"step time {format_seconds(prediction.step_time_s)}, {prediction.samples_per_s:.4g} samples/s, "
        f"MFU {format_percent(prediction.mfu)}"
    )
    bound = f"; no plan is faster than {format_seconds(bound_s)}" if bound_s is not None and gap else ""
    return [
        Text(f"{status_text(status, gap)} under the cost model{bound}", style="bold"),
        Text(decided),
        Text(speed),
    ]


def _unusual(plan: Plan) -> str:
    """What most plans do not have: another schedule than 1F1B, virtual stages, groups, order, offload."""
    mesh, said = plan.mesh, []
    if plan.schedule not in (None, ScheduleName.ONE_F_ONE_B) and mesh.pipeline != 1:
        said.append(str(plan.schedule))
    if plan.virtual and plan.virtual > 1:
        said.append(f"{plan.virtual} stages a rank")
    if plan.shard_group and plan.shard_group != mesh.data:
        said.append(f"shard groups of {plan.shard_group}")
    if mesh.order and mesh.order != MESH_AXES:
        said.append(f"ranks vary {' > '.join(mesh.order)}")
    if plan.offloaded:
        said.append(f"{' and '.join(plan.offloaded)} offloaded")
    return "".join(f"; {text}" for text in said)


def stage_table(plan: Plan, prediction: Prediction) -> Table:
    """One row a rank of the pipeline: the blocks of its stages, where a step's time goes, and its memory
    against the limit."""
    table = plain_table(">stage", "blocks", ">compute", ">comm", ">idle", ">memory", "of the limit")
    table.columns[-1].no_wrap = True
    for index, stage in enumerate(prediction.stages):
        table.add_row(
            str(index),
            " | ".join(_shortened(compact(blocks)) for blocks in _stages_of(plan, index)),
            *(format_seconds(s) if s else "0" for s in (stage.compute_s, stage.comm_s, stage.idle_s)),
            format_bytes(stage.memory.total_bytes),
            memory_bar(stage, prediction.memory_limit_bytes),
        )
    return table


def _stages_of(plan: Plan, rank: int) -> list[tuple[str, ...]]:
    """The blocks of every stage that a rank of the pipeline holds."""
    if not plan.stages or not plan.mesh.pipeline or len(plan.stages) % plan.mesh.pipeline:
        return []
    schedule, virtual = plan.schedule or ScheduleName.ONE_F_ONE_B, len(plan.stages) // plan.mesh.pipeline
    return [plan.stages[stage] for stage in rank_stages(schedule, rank, plan.mesh.pipeline, virtual)]


def memory_table(stages: Sequence[StagePrediction]) -> Table:
    """One row a stage: memory by purpose, all in the unit that suits the model."""
    # What the framework takes says nothing of the model.
    largest = max((stage.memory.total_bytes - stage.memory.reserved_bytes for stage in stages), default=0)
    name, size = ("GiB", GiB) if largest >= GiB // 8 else ("MiB", MiB)
    is_offloaded = any(stage.memory.host_bytes for stage in stages)
    host = [">on the host"] if is_offloaded else []
    purposes = (f">{_SHORTER.get(purpose, purpose)}" for purpose in MEMORY_PURPOSES)
    table = plain_table(">stage", *purposes, f">total {name}", *host)
    for index, stage in enumerate(stages):
        sizes = [memory_of(stage.memory, purpose) for purpose in MEMORY_PURPOSES]
        sizes.append(stage.memory.total_bytes)
        if is_offloaded:
            sizes.append(stage.memory.host_bytes)
        table.add_row(str(index), *(f"{num_bytes / size:.2f}" for num_bytes in sizes))
    return table


def alternatives_table(alternatives: Iterable[NotChosen]) -> Table:
    """One row a plan that was not chosen, with the reason."""
    table = plain_table(
        "pipeline x data x tensor", ">micro", ">zero", "schedule", ">step time", ">peak memory", "why not"
    )
    for other in alternatives:
        table.add_row(
            mesh_text(other.mesh),
            str(other.micro_batch),
            _levels(other.zero),
            _schedule(other.schedule, other.virtual, other.offload),
            "" if other.step_time_s is None else format_seconds(other.step_time_s),
            "" if other.peak_memory_bytes is None else format_bytes(other.peak_memory_bytes),
            other.why_not,
        )
    return table


def baselines_table(baselines: Iterable[Baseline]) -> Table:
    """One row a plan that people would write by hand, with what it loses or why it does not fit."""
    table = plain_table(
        "baseline",
        "pipeline x data x tensor",
        ">micro",
        ">zero",
        "recompute",
        ">step time",
        ">peak memory",
        "beside the plan",
    )
    for other in baselines:
        table.add_row(
            other.name,
            "" if other.mesh is None else mesh_text(other.mesh),
            "" if other.micro_batch is None else str(other.micro_batch),
            "" if other.zero is None else str(other.zero),
            other.recompute or "",
            "" if other.step_time_s is None else format_seconds(other.step_time_s),
            "" if other.peak_memory_bytes is None else format_bytes(other.peak_memory_bytes),
            other.remark,
        )
    return table


def mesh_text(mesh: Mesh) -> str:
    """``2 x 4 x 8``: pipeline, data, tensor."""
    return f"{mesh.pipeline} x {mesh.data} x {mesh.tensor}"


def memory_bar(stage: StagePrediction, limit_bytes: int) -> Text:
    """How full the device is: green, yellow above 90%, red above the limit."""
    share = stage.memory.total_bytes / limit_bytes if limit_bytes else 0.0
    cells = min(_BAR_CELLS, round(share * _BAR_CELLS))
    style = "red" if share > 1 else "yellow" if share > 0.9 else "green"
    return Text("█" * cells + "░" * (_BAR_CELLS - cells) + f" {share:>4.0%}", style=style)


def plain_table(*headers: str) -> Table:
    """A table without a frame; of a header that begins with ``>``, the column is one of numbers."""
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold"
    )
    for header in headers:
        if header.startswith(">"):
            table.add_column(header.removeprefix(">"), justify="right", no_wrap=True)
        else:
            table.add_column(header, overflow="fold", min_width=_NARROWEST)
    return table


def _levels(zero: int | tuple[int, ...] | None) -> str:
    if isinstance(zero, tuple):
        return str(zero[0]) if len(set(zero)) == 1 else "/".join(map(str, zero))
    return str(zero)


def _schedule(name: ScheduleName, virtual: int, offload: str) -> str:
    text = f"{name} x {virtual}" if virtual > 1 else str(name)
    return text if offload == "none" else f"{text}, offload {offload}"


def _shortened(blocks: Sequence[str]) -> str:
    """As many names from the front as there is room for, and the last one."""
    text = ", ".join(blocks)
    kept = len(blocks) - 1
    while len(text) > _BLOCKS_WIDTH and kept > 1:
        kept -= 1
        text = ", ".join([*blocks[:kept], "…", blocks[-1]])
    return text
