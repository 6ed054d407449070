"""Tensor axis, recompute and data axis of a PyTorch script."""

from __future__ import annotations

from autopar.export.exported import general
from autopar.export.subject import ExportedParameter, Subject
from autopar.plan.decisions import Precision, Recompute
from autopar.sharding.placement import Shard

DTYPES = {Precision.BF16: "torch.bfloat16", Precision.FP16: "torch.float16"}
"""How the script writes what is computed in; of fp32, nothing."""

_HEADS = ("lm_head", "head", "classifier", "output", "score")


def split_modules(subject: Subject, is_cut: bool, left_out: list[str]) -> str:
    """``parallelize_module`` with a style for each module.

    Args:
        is_cut: whether the script has a pipeline.
    """
    if subject.degrees[2] == 1:
        return ""
    if is_cut:
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


def recompute_layers(subject: Subject, left_out: list[str]) -> str:
    """``checkpoint_wrapper`` around what is recomputed."""
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


def shard_data(subject: Subject, level: int, is_cut: bool, left_out: list[str]) -> str:
    """``fully_shard`` under ZeRO, else ``DistributedDataParallel``.

    Args:
        is_cut: whether the script has a pipeline.
    """
    precision = subject.plan.precision or Precision.FP32
    dtype = DTYPES.get(precision)
    if dtype and is_cut:
        left_out.append(
            f"precision: {precision}: stages hand over float32, as traced, and so compute in it: cast the"
            " model before `pipeline` to change that"
        )
        dtype = None
    if not level or subject.degrees[1] == 1:
        if dtype:
            left_out.append(f"precision: {precision}: weights stay float32 and torch.autocast computes")
        if subject.degrees[1] == 1 or is_averaged_by_hand(subject, level, is_cut):
            return ""
        return """
parts = [DistributedDataParallel(part, process_group=mesh["data"].get_group()) for part in parts]
"""
    if level == 1:
        left_out.append("zero: 1: FSDP2 shards gradients as well, which is level 2")
    if subject.shard_group < subject.degrees[1]:
        left_out.append(f"shard_group: {subject.shard_group}: state is sharded over the whole data axis here")
    dtypes = f"param_dtype={dtype}, reduce_dtype=torch.float32" if dtype else ""
    policy = f"MixedPrecisionPolicy({dtypes})"
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


def is_averaged_by_hand(subject: Subject, level: int, is_cut: bool) -> bool:
    """Whether the loop averages gradients: stages that were traced cannot be wrapped, and
    ``DistributedDataParallel`` takes no shards of the tensor axis."""
    return subject.degrees[1] > 1 and not level and (is_cut or subject.degrees[2] > 1)


def averaged_gradients(subject: Subject, level: int, is_cut: bool) -> str:
    """Lines of the loop that average gradients over the data axis; empty where a wrapper does."""
    if not is_averaged_by_hand(subject, level, is_cut):
        return ""
    return f"""
    for part in parts:
        for parameter in part.parameters():
            if parameter.grad is not None:
                grad = parameter.grad.to_local() if hasattr(parameter.grad, "to_local") else parameter.grad
                torch.distributed.all_reduce(grad, group=mesh["data"].get_group())
                grad /= {subject.degrees[1]}"""


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
