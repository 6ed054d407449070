"""Command-line flags of Megatron-LM (megatron/training/arguments.py, core 0.16)."""

from __future__ import annotations

from autopar.export.exported import Exported, commented, header, one_zero_level, recompute_word
from autopar.export.subject import Subject
from autopar.plan.decisions import MESH_AXES, Precision, Recompute, ScheduleName
from autopar.sharding.placement import Shard

_PRECISION = {Precision.BF16: ["--bf16"], Precision.FP16: ["--fp16"], Precision.FP32: []}
_OPTIMIZER = {
    "adamw": ["--optimizer adam"],
    "adam": ["--optimizer adam"],
    "sgd": ["--optimizer sgd", "--sgd-momentum 0.0"],
    "sgd-momentum": ["--optimizer sgd"],
}


def to_megatron(subject: Subject) -> Exported:
    """Flags of the parallelism; those of the model and the data are the user's."""
    left_out: list[str] = []
    plan = subject.plan
    pipeline, _, tensor = subject.degrees
    flags = [
        f"--tensor-model-parallel-size {tensor}",
        f"--pipeline-model-parallel-size {pipeline}",
        f"--micro-batch-size {plan.micro_batch}",
        f"--global-batch-size {plan.global_batch}",
        *_PRECISION[plan.precision or Precision.FP32],
        *_OPTIMIZER[plan.optimizer or "adamw"],
        *_schedule(subject, left_out),
        *_tensor(subject, left_out),
        *_data(subject, left_out),
        *_recompute(subject, left_out),
    ]
    if plan.optimizer == "adam":
        left_out.append("optimizer: adam: Megatron-LM decouples weight decay, as adamw does")
    if plan.compile:
        left_out.append("compile: true: Megatron-LM has fused kernels of its own")
    text = commented(
        [
            *header(subject, "Megatron-LM", left_out),
            "Megatron-LM trains models of its own: add the flags of the one that is like this",
            "(--num-layers and so on).",
        ]
    )
    return Exported(text + "".join(f"{flag}\n" for flag in flags), tuple(left_out))


def _schedule(subject: Subject, left_out: list[str]) -> list[str]:
    plan, pipeline = subject.plan, subject.degrees[0]
    counts, flags = subject.layers_of_stages, []
    if plan.schedule is ScheduleName.INTERLEAVED and subject.num_stages > pipeline:
        flags.append(f"--num-virtual-stages-per-pipeline-rank {plan.virtual or 1}")
    elif plan.schedule not in (ScheduleName.ONE_F_ONE_B, ScheduleName.INTERLEAVED) and pipeline > 1:
        left_out.append(f"pipeline.schedule: {plan.schedule}: Megatron-LM runs 1f1b, or interleaved")
        if subject.num_stages > pipeline:
            left_out.append(
                f"pipeline.stages: {subject.num_stages} of them on {pipeline} ranks need the schedule;"
                f" {pipeline} are written, as even as layers allow"
            )
            counts = _evenly(sum(counts), pipeline)
    if len(set(counts)) > 1:
        # E the embeddings, t a layer, L head and loss; | between stages (Megatron-LM, pipeline layouts).
        stages = ["t" * count for count in counts]
        stages[0], stages[-1] = "E" + stages[0], stages[-1] + "L"
        flags = [f"--pipeline-model-parallel-layout {'|'.join(stages)}"]
    _say_of_the_ends(subject, left_out)
    if plan.mesh.order == ("data", "pipeline", "tensor"):
        flags.append("--use-tp-pp-dp-mapping")
    elif plan.mesh.order not in (None, MESH_AXES):
        left_out.append(f"mesh.order: {list(plan.mesh.order or ())}: Megatron-LM has no such order of ranks")
    return flags


def _evenly(num_layers: int, num_stages: int) -> tuple[int, ...]:
    return tuple((num_layers + stage) // num_stages for stage in range(num_stages))


def _say_of_the_ends(subject: Subject, left_out: list[str]) -> None:
    if not subject.layers:
        left_out.append("model: it has no repeated layers; Megatron-LM's models are made of them")
    elif outside := _away_from_the_ends(subject):
        left_out.append(
            f"pipeline.stages: {', '.join(outside)}: Megatron-LM keeps embeddings in the first stage, and the"
            " final norm, head and loss in the last"
        )


def _away_from_the_ends(subject: Subject) -> list[str]:
    """Blocks that are not layers, and not where Megatron-LM has them."""
    layers = [i for i, block in enumerate(subject.blocks) if block.is_layer]
    found = []
    for index, block in enumerate(subject.blocks):
        wanted = 0 if index < layers[0] else subject.num_stages - 1 if index > layers[-1] else block.stage
        if not block.is_layer and block.stage != wanted:
            found.append(block.name)
    return found


def _tensor(subject: Subject, left_out: list[str]) -> list[str]:
    if subject.degrees[2] == 1:
        return []
    flags = ["--sequence-parallel"] if subject.has_sequence else []
    layers = [block.name for block in subject.layers]
    whole = [
        parameter.name
        for parameter in subject.parameters
        if parameter.num_dims > 1
        and not parameter.is_sharded
        and any(parameter.name.startswith(f"{name}.") for name in layers)
    ]
    if whole:
        left_out.append(
            f"tensor: {whole[0]}{f' and {len(whole) - 1} more' if whole[1:] else ''}: whole here; Megatron-LM"
            " splits every product of a layer by column or row"
        )
    if other := _vocabulary_not_split(subject, layers):
        left_out.append(
            f"tensor: {', '.join(other)}: Megatron-LM splits embedding and head by the vocabulary, always"
        )
    others = sorted({b.output_word for b in subject.layers} - {"sequence", "replicate"})
    if others or (subject.has_sequence and any(b.output_word == "replicate" for b in subject.layers)):
        words = sorted({b.output_word for b in subject.layers})
        left_out.append(f"activations: {', '.join(words)}: Megatron-LM has one word for all layers")
    if subject.plan.operators:
        left_out.append(f"operators: {len(subject.plan.operators)} lines: Megatron-LM decides inside a layer")
    return flags


def _vocabulary_not_split(subject: Subject, layers: list[str]) -> list[str]:
    """Matrices outside the layers with a row for each word, where rows are not what is split."""
    outside = [
        parameter
        for parameter in subject.parameters
        if parameter.num_dims == 2 and not any(parameter.name.startswith(f"{name}.") for name in layers)
    ]
    num_words = max((parameter.shape[0] for parameter in outside), default=0)
    return [one.name for one in outside if one.shape[0] == num_words and one.placement != Shard(0)]


def _data(subject: Subject, left_out: list[str]) -> list[str]:
    plan = subject.plan
    data = subject.degrees[1]
    level = one_zero_level(subject, left_out)
    flags = []
    if level == 1:
        flags = ["--use-distributed-optimizer", "--overlap-grad-reduce", "--overlap-param-gather"]
        if subject.shard_group < data:
            flags.append(f"--num-distributed-optimizer-instances {data // subject.shard_group}")
    elif level > 1:
        strategy = {2: "optim_grads", 3: "optim_grads_params"}[level]
        flags = [
            "--use-megatron-fsdp",
            f"--data-parallel-sharding-strategy {strategy}",
            "--use-distributed-optimizer",
        ]
        if subject.shard_group < data:
            left_out.append(
                f"shard_group: {subject.shard_group}: Megatron-FSDP shards over all {data} data ranks"
            )
    elif data > 1:
        flags = ["--overlap-grad-reduce"]
    for word in plan.offloaded:
        if word == "optimizer":
            flags.append("--optimizer-cpu-offload")
        else:
            left_out.append(f"offload: {word}: no flag offloads them whatever the model")
    return flags


def _recompute(subject: Subject, left_out: list[str]) -> list[str]:
    word = recompute_word(subject)
    if word is Recompute.NONE:
        return []
    if word is Recompute.SELECTIVE:
        left_out.append(
            "recompute: selective: here everything but products, attention and collectives; Megatron-LM"
            " recomputes the core of attention"
        )
        return ["--recompute-granularity selective"]
    if word is Recompute.FULL:
        return ["--recompute-granularity full", "--recompute-method uniform", "--recompute-num-layers 1"]
    count = _recomputed_first(subject)
    if count is not None:
        return ["--recompute-granularity full", "--recompute-method block", f"--recompute-num-layers {count}"]
    left_out.append(
        "recompute: it differs between layers; Megatron-LM recomputes as many first layers in every stage:"
        " all are written, which needs no more memory"
    )
    return ["--recompute-granularity full", "--recompute-method uniform", "--recompute-num-layers 1"]


def _recomputed_first(subject: Subject) -> int | None:
    """n, where every stage recomputes its first n layers and no others."""
    counts = set()
    for stage in range(subject.num_stages):
        words = [block.recompute for block in subject.layers if block.stage == stage]
        count = sum(word is Recompute.FULL for word in words)
        if words != [Recompute.FULL] * count + [Recompute.NONE] * (len(words) - count):
            return None
        counts.add(count)
    return counts.pop() if len(counts) == 1 else None
