"""A short script with PyTorch's own parts: ``parallelize_module``, ``fully_shard``, ``pipelining``."""

from __future__ import annotations

from autopar.export.exported import Exported, header, one_zero_level
from autopar.export.pytorch_axes import (
    DTYPES,
    averaged_gradients,
    recompute_layers,
    shard_data,
    split_modules,
)
from autopar.export.pytorch_model import load_model
from autopar.export.pytorch_pipeline import SCHEDULES, pipelined_steps, schedule_of, split_stages
from autopar.export.subject import Subject
from autopar.plan.decisions import MESH_AXES, Precision, ScheduleName


def to_pytorch(subject: Subject) -> Exported:
    """A training script to read, change and run under torchrun."""
    left_out: list[str] = []
    level = one_zero_level(subject, left_out) if subject.degrees[1] > 1 else 0
    schedule = schedule_of(subject, left_out)
    parts = [
        _mesh(subject),
        load_model(subject, left_out),
        split_stages(subject, schedule),
        split_modules(subject, schedule is not None, left_out),
        recompute_layers(subject, left_out),
        shard_data(subject, level, schedule is not None, left_out),
        _loop(subject, schedule, level),
    ]
    if subject.plan.compile:
        left_out.append("compile: true: put model.compile() where you want it")
    left_out += [f"offload: {word}: not written" for word in subject.plan.offloaded]
    if subject.plan.operators:
        left_out.append(
            f"operators: {len(subject.plan.operators)} lines: parallelize_module decides by module"
        )
    lines = [
        *header(subject, "plain PyTorch", left_out),
        "",
        f"    torchrun --nproc-per-node {_local(subject)} FILE",
    ]
    doc = '"""' + "\n".join(lines) + '\n"""\n'
    return Exported(doc + "\n" + _imports(parts) + "".join(parts), tuple(left_out))


def _local(subject: Subject) -> int:
    pipeline, data, tensor = subject.degrees
    nodes = subject.plan.cluster.nodes if subject.plan.cluster else 1
    return pipeline * data * tensor // nodes


_MODULES = {
    "importlib.import_module": "import importlib",
    "importlib.util": "import importlib.util",
    "inspect.": "import inspect",
    "os.environ": "import os",
    "sys.path": "import sys",
    "torch.": "import torch",
    "transformers.": "import transformers",
}
_FROM = {
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper": ("checkpoint_wrapper",),
    "torch.distributed.device_mesh": ("init_device_mesh",),
    "torch.distributed.fsdp": ("MixedPrecisionPolicy", "fully_shard"),
    "torch.distributed.pipelining": ("SplitPoint", "build_stage", "pipeline", *SCHEDULES.values()),
    "torch.distributed.tensor": ("Replicate",),
    "torch.distributed.tensor.parallel": ("ColwiseParallel", "RowwiseParallel", "parallelize_module"),
    "torch.nn.parallel": ("DistributedDataParallel",),
}


def _imports(parts: list[str]) -> str:
    """What the parts use, and no more."""
    text = "".join(parts)
    lines = [line for used, line in _MODULES.items() if used in text]
    for module, names in _FROM.items():
        used_names = [name for name in names if f"{name}(" in text or f"{name}." in text]
        if used_names:
            lines.append(f"from {module} import {', '.join(used_names)}")
    return "\n".join(lines) + "\n"


def _mesh(subject: Subject) -> str:
    order = subject.plan.mesh.order or MESH_AXES
    sizes = dict(zip(MESH_AXES, subject.degrees, strict=True))
    shape = ", ".join(str(sizes[axis]) for axis in order)
    names = ", ".join(f'"{axis}"' for axis in order)
    return f"""
device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
mesh = init_device_mesh(device, ({shape}), mesh_dim_names=({names}))
"""


def _loop(subject: Subject, schedule: ScheduleName | None, level: int) -> str:
    optimizers = {"sgd": "SGD", "sgd-momentum": "SGD", "adam": "Adam"}
    name = optimizers.get(subject.plan.optimizer or "adamw", "AdamW")
    momentum = ", momentum=0.9" if subject.plan.optimizer == "sgd-momentum" else ""
    start = f"""
optimizer = torch.optim.{name}((p for part in parts for p in part.parameters()), lr=1e-4{momentum})
torch.manual_seed(1 + mesh["data"].get_local_rank())  # every data rank has samples of its own
"""
    if schedule is not None:
        return start + pipelined_steps(subject, schedule, level)
    dtype = DTYPES.get(subject.plan.precision or Precision.FP32)
    entries = "micro" if subject.is_hugging_face else "inputs"
    forward = (
        f"loss = loss_of(parts[0](**{{name: micro[name] for name in {entries}}}), micro) / num_micro_batches"
    )
    if dtype and not level:
        forward = f"with torch.autocast(device, {dtype}):\n            {forward}"
    dims = {one.name: one.batch_dim for one in subject.batch if one.batch_dim}
    chunk = f", {dims!r}.get(name, 0)" if dims else ""
    shared = [one.name for one in subject.batch if one.batch_dim is None]
    whole = f"value if name in {shared!r} else " if shared else ""
    return f"""{start}
for step in range(int(os.environ.get("STEPS", "10"))):
    whole, total = batch(), 0.0
    for index in range(num_micro_batches):
        micro = {{name: {whole}value.chunk(num_micro_batches{chunk})[index] for name, value in whole.items()}}
        {forward}
        loss.backward()
        total += loss.item(){averaged_gradients(subject, level, is_cut=False)}
    optimizer.step()
    optimizer.zero_grad()
    if torch.distributed.get_rank() == 0:
        print(f"step {{step}} loss {{total:.4f}}", flush=True)
torch.distributed.destroy_process_group()
"""
