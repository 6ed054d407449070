"""The pipeline of a PyTorch script: how ``torch.distributed.pipelining`` cuts the model and runs a step."""

from __future__ import annotations

from autopar.export.pytorch_axes import averaged_gradients
from autopar.export.subject import Subject
from autopar.plan.decisions import ScheduleName

# What runs a schedule, and the stages of a rank; a schedule of one stage takes the stage, others a list.
SCHEDULES = {
    ScheduleName.GPIPE: "ScheduleGPipe",
    ScheduleName.ONE_F_ONE_B: "Schedule1F1B",
    ScheduleName.INTERLEAVED: "ScheduleInterleaved1F1B",
    ScheduleName.ZBV: "ScheduleZBVZeroBubble",
}
_OF_ONE = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B)


def schedule_of(subject: Subject, left_out: list[str]) -> ScheduleName | None:
    """The schedule that is written; None without a pipeline, or where pipelining cannot cut the model."""
    if subject.degrees[0] == 1:
        return None
    wanted = subject.plan.schedule or ScheduleName.ONE_F_ONE_B
    what = _why_not_cut(subject)
    if what:
        left_out.append(
            f"mesh.pipeline: {subject.degrees[0]}: {what}; cut the model by hand. Every rank holds it whole"
        )
        return None
    if subject.shared_by_stages:
        left_out.append(
            f"model: {', '.join(subject.shared_by_stages)}: several stages read it, and pipelining gives each"
            " a copy of its own: sum the gradients of the copies by hand, or untie them"
        )
    if wanted not in SCHEDULES:
        left_out.append(f"pipeline.schedule: {wanted}: not of one stage a rank in PyTorch; 1F1B is written")
        return ScheduleName.ONE_F_ONE_B
    if wanted is ScheduleName.ZBV:
        left_out.append(
            "pipeline.schedule: zbv: ranks of stages that pipelining traced begin by sending to themselves"
            " (torch 2.13), which gloo, on CPUs, refuses: there, write another schedule"
        )
    return wanted


def _why_not_cut(subject: Subject) -> str:
    """What keeps ``pipelining`` from running the model in stages; empty where nothing does."""
    if subject.is_hugging_face:
        return "models of transformers return more than tensors"
    if _first_blocks(subject) is None:
        return "a stage begins inside of what is no module"
    if any(entry.batch_dim != 0 for entry in subject.batch):
        return "pipelining counts samples along the first dim alone"
    late = [entry.name for entry in subject.batch if entry.is_read_late]
    if late:
        return f"a later stage reads {', '.join(late)}, and pipelining gives inputs to the first alone"
    positions = sorted(entry.position for entry in subject.batch if entry.position is not None)
    if positions != list(range(len(positions))):
        return "pipelining hands over arguments by their order, and one before the last is not in the batch"
    return ""


def split_stages(subject: Subject, schedule: ScheduleName | None) -> str:
    """The stages of a rank as ``parts``; without a pipeline, the whole model."""
    if schedule is None:
        return "\nparts = [model]\n"
    first = _first_blocks(subject)
    pipeline_degree, virtual = subject.degrees[0], subject.num_stages // subject.degrees[0]
    stages = f"[rank + {pipeline_degree} * i for i in range({virtual})]"
    if schedule is ScheduleName.ZBV:
        stages = f"[rank, {2 * pipeline_degree - 1} - rank]"
    return f"""
pipe = pipeline(
    model,
    mb_args=tuple(example[name][: {subject.plan.micro_batch}] for name in inputs),
    split_spec={{name: SplitPoint.BEGINNING for name in {first!r}}},
)
roots = list(pipe.split_gm.graph.find_nodes(op="placeholder"))
first = next(node for node in pipe.split_gm.graph.nodes if node.op == "call_module")
inputs = [inputs[roots.index(node)] for node in first.args]  # in the order in which stage 0 reads them
rank = mesh["pipeline"].get_local_rank()
stages = {stages}
parts = [pipe.get_stage_module(stage) for stage in stages]
"""


def pipelined_steps(subject: Subject, schedule: ScheduleName, level: int) -> str:
    """The steps; gradients are averaged here where no ZeRO level does."""
    given = "built[0]" if schedule in _OF_ONE else "built"
    return f"""
group = mesh["pipeline"].get_group()
built = [
    build_stage(part, stage, pipe.info(), torch.device(device), group)
    for part, stage in zip(parts, stages)
]
rows = torch.arange({subject.plan.micro_batch} * num_micro_batches, device=device)


def loss_of_rows(output, rows):  # pipelining hands one tensor to the loss: the numbers of the samples
    return loss_of(output, {{name: value[rows] for name, value in whole.items()}})


schedule = {SCHEDULES[schedule]}({given}, num_micro_batches, loss_fn=loss_of_rows)
last = {subject.num_stages - 1} in stages
for step in range(int(os.environ.get("STEPS", "10"))):
    whole, losses = batch(), []
    schedule.step(
        *((whole[name] for name in inputs) if 0 in stages else ()),
        **({{"target": rows, "losses": losses}} if last else {{}}),
        return_outputs=False,
    ){averaged_gradients(subject, level, is_cut=True)}
    optimizer.step()
    optimizer.zero_grad()
    if losses and mesh["data"].get_local_rank() == 0:
        print(f"step {{step}} loss {{torch.stack(losses).mean().item():.4f}}", flush=True)
torch.distributed.destroy_process_group()
"""


def _first_blocks(subject: Subject) -> list[str] | None:
    """The module that begins each stage but the first; None where one does not begin with a module."""
    first = []
    for stage in range(1, subject.num_stages):
        block = next(block for block in subject.blocks if block.stage == stage)
        if not block.module_class:
            return None
        first.append(block.name)
    return first
