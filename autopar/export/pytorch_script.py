"""A short script with PyTorch's own parts: ``parallelize_module``, ``fully_shard``, ``pipelining``."""

from __future__ import annotations

from autopar.export.exported import Exported, general, header, one_zero_level
from autopar.export.subject import ExportedParameter, Subject
from autopar.plan.decisions import MESH_AXES, Precision, Recompute, ScheduleName
from autopar.sharding.placement import Shard

# What runs a schedule, and the stages of a rank; a schedule of one stage takes the stage, others a list.
_SCHEDULES = {
    ScheduleName.GPIPE: "ScheduleGPipe",
    ScheduleName.ONE_F_ONE_B: "Schedule1F1B",
    ScheduleName.INTERLEAVED: "ScheduleInterleaved1F1B",
    ScheduleName.ZBV: "ScheduleZBVZeroBubble",
}
_OF_ONE = (ScheduleName.GPIPE, ScheduleName.ONE_F_ONE_B)
_DTYPES = {Precision.BF16: "torch.bfloat16", Precision.FP16: "torch.float16"}
_HEADS = ("lm_head", "head", "classifier", "output", "score")


def to_pytorch(subject: Subject) -> Exported:
    """A training script to read, change and run under torchrun."""
    left_out: list[str] = []
    level = one_zero_level(subject, left_out)
    schedule = _schedule(subject, left_out)
    parts = [
        _mesh(subject),
        _model(subject, left_out),
        _split(subject, schedule, left_out),
        _tensor(subject, left_out),
        _recompute(subject, left_out),
        _data(subject, level, left_out),
        _loop(subject, schedule, level, left_out),
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
    "importlib.util": "import importlib.util",
    "inspect.": "import inspect",
    "os.environ": "import os",
    "torch.": "import torch",
    "transformers.": "import transformers",
}
_FROM = {
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper": ("checkpoint_wrapper",),
    "torch.distributed.device_mesh": ("init_device_mesh",),
    "torch.distributed.fsdp": ("MixedPrecisionPolicy", "fully_shard"),
    "torch.distributed.pipelining": ("SplitPoint", "build_stage", "pipeline", *_SCHEDULES.values()),
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


def _model(subject: Subject, left_out: list[str]) -> str:
    plan = subject.plan
    assert plan.model is not None
    arguments = dict(plan.model.args)
    if subject.is_hugging_face:
        left_out.append("model: random weights of the configuration, and random tokens; load your own")
        source, seq = f"{plan.model.source!r}", arguments.pop("seq", 128)
        settings = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        loading = f"""
config = transformers.AutoConfig.from_pretrained({source}, {settings})
model = getattr(transformers, config.architectures[0])(config).to(device)
"""
        batch = f"""
def batch():
    tokens = torch.randint(config.vocab_size, ({plan.micro_batch} * num_micro_batches, {seq}), device=device)
    return {{"input_ids": tokens, "labels": tokens}}


def loss_of(output, _):
    return output.loss
"""
    else:
        file, _, factory = plan.model.source.partition(":")
        loading = f"""
spec = importlib.util.spec_from_file_location("model_file", {file!r})
model_file = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model_file)
arguments = {arguments!r}


def accepted(function):
    known = inspect.signature(function).parameters
    return {{name: value for name, value in arguments.items() if name in known}}


model = model_file.{factory or "build_model"}(**accepted(model_file.{factory or "build_model"})).to(device)
"""
        batch = f"""
def batch():
    entries = model_file.example_batch(
        {plan.micro_batch} * num_micro_batches, **accepted(model_file.example_batch)
    )
    return {{name: value.to(device) for name, value in entries.items()}}


def loss_of(output, entries):
    return model_file.loss(output, entries) if hasattr(model_file, "loss") else output
"""
    return f"""
num_micro_batches = {plan.num_micro_batches}
torch.manual_seed(0)  # the same weights on every rank{loading}
{batch}

example = batch()
inputs = [name for name in inspect.signature(model.forward).parameters if name in example]
labels = [name for name in example if name not in inputs]
"""


def _schedule(subject: Subject, left_out: list[str]) -> ScheduleName | None:
    """The schedule that is written; None without a pipeline, or where pipelining cannot cut the model."""
    if subject.degrees[0] == 1:
        return None
    wanted = subject.plan.schedule or ScheduleName.ONE_F_ONE_B
    if subject.is_hugging_face or _first_blocks(subject) is None:
        what = (
            "models of transformers return more than tensors"
            if subject.is_hugging_face
            else ("a stage begins inside of what is no module")
        )
        left_out.append(
            f"mesh.pipeline: {subject.degrees[0]}: {what}; cut the model by hand. Every rank holds it whole"
        )
        return None
    if wanted not in _SCHEDULES:
        left_out.append(f"pipeline.schedule: {wanted}: not of one stage a rank in PyTorch; 1F1B is written")
        return ScheduleName.ONE_F_ONE_B
    return wanted


def _first_blocks(subject: Subject) -> list[str] | None:
    """The module that begins each stage but the first; None where one does not begin with a module."""
    first = []
    for stage in range(1, subject.num_stages):
        block = next(block for block in subject.blocks if block.stage == stage)
        if not block.module_class:
            return None
        first.append(block.name)
    return first


def _split(subject: Subject, schedule: ScheduleName | None, left_out: list[str]) -> str:
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
rank = mesh["pipeline"].get_local_rank()
stages = {stages}
parts = [pipe.get_stage_module(stage) for stage in stages]
"""


def _tensor(subject: Subject, left_out: list[str]) -> str:
    if subject.degrees[2] == 1:
        return ""
    if subject.degrees[0] > 1:
        left_out.append(
            f"mesh.tensor: {subject.degrees[2]}: pipelining traces whole sizes, which shards do not have; the"
            " ranks of the tensor axis repeat each other's work. Cut the model by hand to use them"
        )
        return ""
    styles: dict[str, str] = {}
    for parameter in subject.parameters:
        if parameter.is_sharded and parameter.num_dims >= 2:
            style = _style(parameter)
            if style:
                styles[general(parameter.module)] = style
            else:
                left_out.append(
                    f"tensor: {parameter.name}: {parameter.placement} of a {parameter.module_class} is beyond"
                    " parallelize_module; it stays whole"
                )
    if any(block.output_word != "replicate" for block in subject.layers):
        left_out.append("activations: they are whole between layers here (add SequenceParallel by hand)")
    lines = "".join(f'    "{pattern}": {style},\n' for pattern, style in styles.items())
    return f'\nparallelize_module(model, mesh["tensor"], {{\n{lines}}})\n'


def _style(parameter: ExportedParameter) -> str:
    placement = parameter.placement
    if not isinstance(placement, Shard) or placement.blocks > 1 or parameter.num_dims != 2:
        return ""
    column, row = "ColwiseParallel", "RowwiseParallel"
    if parameter.module_class == "Embedding":
        column, row = row, column  # weights are (vocabulary, hidden): rows are tokens
        whole = {0: "(input_layouts=Replicate())", 1: "(output_layouts=Replicate())"}
    elif parameter.module_class != "Linear":
        return ""
    elif parameter.module.rpartition(".")[2] in _HEADS:
        whole = {0: "(output_layouts=Replicate())", 1: "(input_layouts=Replicate())"}
    else:
        whole = {0: "()", 1: "()"}
    return {0: column, 1: row}[placement.dim] + whole[placement.dim]


def _recompute(subject: Subject, left_out: list[str]) -> str:
    names = [
        block.name for block in subject.blocks if block.recompute is not Recompute.NONE and block.module_class
    ]
    if any(block.recompute is Recompute.SELECTIVE for block in subject.blocks):
        left_out.append("recompute: selective: whole layers are recomputed here, which is full")
    if not names:
        return ""
    return f"""
for name in {names!r}:
    for part in parts:
        if name in dict(part.named_modules()):
            parent, _, child = name.rpartition(".")
            setattr(part.get_submodule(parent), child, checkpoint_wrapper(part.get_submodule(name)))
"""


def _data(subject: Subject, level: int, left_out: list[str]) -> str:
    precision = subject.plan.precision or Precision.FP32
    dtype = _DTYPES.get(precision)
    if not level or subject.degrees[1] == 1:
        if dtype:
            left_out.append(f"precision: {precision}: weights stay float32 and torch.autocast computes")
        if subject.degrees[1] == 1 or subject.degrees[0] > 1:
            return ""  # stages that were traced cannot be wrapped: their gradients are averaged in the loop
        return """
parts = [DistributedDataParallel(part, process_group=mesh["data"].get_group()) for part in parts]
"""
    if level == 1:
        left_out.append("zero: 1: FSDP2 shards gradients as well, which is level 2")
    if subject.shard_group < subject.degrees[1]:
        left_out.append(f"shard_group: {subject.shard_group}: state is sharded over the whole data axis here")
    policy = (
        f"MixedPrecisionPolicy(param_dtype={dtype}, reduce_dtype=torch.float32)"
        if dtype
        else ("MixedPrecisionPolicy()")
    )
    names = [block.name for block in subject.layers]
    return f"""
options = {{"mesh": mesh["data"], "mp_policy": {policy}, "reshard_after_forward": {level == 3}}}
for part in parts:
    inside = dict(part.named_modules())
    for name in {names!r}:
        if name in inside:
            fully_shard(inside[name], **options)
    fully_shard(part, **options)
"""


def _loop(subject: Subject, schedule: ScheduleName | None, level: int, left_out: list[str]) -> str:
    optimizers = {"sgd": "SGD", "sgd-momentum": "SGD", "adam": "Adam"}
    name = optimizers.get(subject.plan.optimizer or "adamw", "AdamW")
    momentum = ", momentum=0.9" if subject.plan.optimizer == "sgd-momentum" else ""
    start = f"""
optimizer = torch.optim.{name}((p for part in parts for p in part.parameters()), lr=1e-4{momentum})
torch.manual_seed(1 + mesh["data"].get_local_rank())  # every data rank has samples of its own
"""
    if schedule is not None:
        return start + _pipelined_loop(subject, schedule, level)
    dtype = _DTYPES.get(subject.plan.precision or Precision.FP32)
    autocast = f"torch.autocast(device, {dtype})" if dtype and not level else ""
    forward = "loss = loss_of(parts[0](**{name: micro[name] for name in inputs}), micro) / num_micro_batches"
    if autocast:
        forward = f"with {autocast}:\n            {forward}"
    is_hf = subject.is_hugging_face
    if is_hf:
        forward = forward.replace("for name in inputs", "for name in micro")
    return f"""{start}
for step in range(int(os.environ.get("STEPS", "10"))):
    whole, total = batch(), 0.0
    for index in range(num_micro_batches):
        micro = {{name: value.chunk(num_micro_batches)[index] for name, value in whole.items()}}
        {forward}
        loss.backward()
        total += loss.item()
    optimizer.step()
    optimizer.zero_grad()
    if torch.distributed.get_rank() == 0:
        print(f"step {{step}} loss {{total:.4f}}", flush=True)
torch.distributed.destroy_process_group()
"""


def _pipelined_loop(subject: Subject, schedule: ScheduleName, level: int) -> str:
    data = subject.degrees[1]
    averaging = f"""
    for part in parts:
        for parameter in part.parameters():
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad, group=mesh["data"].get_group())
                parameter.grad /= {data}"""
    average = averaging if data > 1 and not level else ""
    given = "built[0]" if schedule in _OF_ONE else "built"
    return f"""
group = mesh["pipeline"].get_group()
built = [
    build_stage(part, stage, pipe.info(), torch.device(device), group)
    for part, stage in zip(parts, stages)
]
assert len(labels) == 1, "pipelining hands one tensor to the loss"
schedule = {_SCHEDULES[schedule]}(
    {given}, num_micro_batches, loss_fn=lambda output, target: loss_of(output, {{labels[0]: target}})
)
last = {subject.num_stages - 1} in stages
for step in range(int(os.environ.get("STEPS", "10"))):
    whole, losses = batch(), []
    schedule.step(
        *((whole[name] for name in inputs) if 0 in stages else ()),
        **({{"target": whole[labels[0]], "losses": losses}} if last else {{}}),
    ){average}
    optimizer.step()
    optimizer.zero_grad()
    if losses and mesh["data"].get_local_rank() == 0:
        print(f"step {{step}} loss {{torch.stack(losses).mean().item():.4f}}", flush=True)
torch.distributed.destroy_process_group()
"""
