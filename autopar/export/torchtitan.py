"""A torchtitan job in TOML (0.2: ``--job.config_file``; 0.3 takes the keys as flags, ``--section.key``)."""

from __future__ import annotations

import json
import re
from typing import Any

from autopar.export.exported import Exported, commented, header, one_zero_level, recompute_word
from autopar.export.subject import Subject
from autopar.plan.decisions import MESH_AXES, Precision, Recompute, ScheduleName

_SCHEDULES = {
    ScheduleName.GPIPE: "GPipe",
    ScheduleName.ONE_F_ONE_B: "1F1B",
    ScheduleName.INTERLEAVED: "Interleaved1F1B",
    ScheduleName.ZERO_BUBBLE: "InterleavedZeroBubble",
    ScheduleName.ZBV: "ZBVZeroBubble",
}


_LLAMA = {"model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output"}
_LAYER = re.compile(r"model\.layers\.\d+")


def to_torchtitan(subject: Subject) -> Exported:
    """Sections training, parallelism, activation_checkpoint and compile; the model's are the user's."""
    left_out: list[str] = []
    sections = {
        "training": _training(subject, left_out),
        "parallelism": _parallelism(subject, left_out),
        "activation_checkpoint": {"mode": _mode(subject, left_out)},
        "compile": {"enable": bool(subject.plan.compile)},
    }
    if sections["activation_checkpoint"]["mode"] == "selective":
        sections["activation_checkpoint"]["selective_ac_option"] = "op"
    lines = []
    for section, entries in sections.items():
        lines.append(
            f"\n[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in entries.items())
        )
    text = commented(header(subject, "torchtitan", left_out)) + "".join(lines)
    return Exported(text, tuple(left_out))


def _toml(value: Any) -> str:
    # Of texts, whole numbers, booleans and lists of them, JSON and TOML write the same.
    return json.dumps(value)


def _training(subject: Subject, left_out: list[str]) -> dict[str, Any]:
    plan = subject.plan
    pipeline = subject.degrees[0]
    # A pipeline is fed all micro-batches of a step; without one, they are steps of gradient accumulation.
    local = (plan.micro_batch or 1) * (plan.num_micro_batches if pipeline > 1 else 1)
    precision = plan.precision or Precision.FP32
    if precision is Precision.FP16:
        left_out.append("precision: fp16: torchtitan knows bfloat16 and float32; bfloat16 is written")
    if plan.optimizer not in (None, "adamw"):
        left_out.append(f"optimizer: {plan.optimizer}: [optimizer] is the model's own")
    for word in plan.offloaded:
        if word != "parameters":
            left_out.append(
                f"offload: {word}: torchtitan offloads parameters, gradients and optimizer together"
            )
    return {
        "local_batch_size": local,
        "global_batch_size": plan.global_batch,
        "mixed_precision_param": "float32" if precision is Precision.FP32 else "bfloat16",
        "enable_cpu_offload": "parameters" in plan.offloaded,
    }


def _parallelism(subject: Subject, left_out: list[str]) -> dict[str, Any]:
    plan = subject.plan
    pipeline, data, tensor = subject.degrees
    level = one_zero_level(subject, left_out)
    group = subject.shard_group if level else 1
    entries: dict[str, Any] = {
        "data_parallel_replicate_degree": data // group,
        "data_parallel_shard_degree": group,
        "fsdp_reshard_after_forward": "always" if level == 3 else "never",
        "tensor_parallel_degree": tensor,
        "pipeline_parallel_degree": pipeline,
    }
    if level == 1:
        left_out.append("zero: 1: FSDP2 shards gradients as well, which is level 2")
    if pipeline > 1:
        entries["pipeline_parallel_schedule"] = _SCHEDULES[plan.schedule or ScheduleName.ONE_F_ONE_B]
        if plan.schedule is ScheduleName.ZERO_BUBBLE:
            left_out.append(
                "pipeline.schedule: zero-bubble: of one stage a rank; torchtitan means InterleavedZeroBubble"
                " for several"
            )
        if subject.shared_by_stages:
            left_out.append(
                f"model: {', '.join(subject.shared_by_stages)}: several stages read it; torchtitan's stages"
                " share nothing: untie it"
            )
        entries["pipeline_parallel_microbatch_size"] = plan.micro_batch
        entries["module_fqns_per_model_part"] = _parts(subject, left_out)
    if plan.mesh.order not in (None, MESH_AXES):
        left_out.append(f"mesh.order: {list(plan.mesh.order or ())}: torchtitan has the pipeline outermost")
    if tensor > 1:
        lines = len(plan.tensor) + len(plan.activations) + len(plan.operators)
        left_out.append(
            f"tensor, activations, operators: {lines} lines: torchtitan's models bring their own placements"
            " (column, row, sequence, vocabulary)"
        )
    return entries


def _parts(subject: Subject, left_out: list[str]) -> list[list[str]]:
    """Modules of every stage; blocks that are no modules (the loss) are left out."""
    gone = [block.name for block in subject.blocks if not block.module_class and block.name != "loss"]
    if gone:
        left_out.append(f"pipeline.stages: {', '.join(gone)}: no modules of the model")
    parts = [
        [b.name for b in subject.blocks if b.stage == stage and b.module_class]
        for stage in range(subject.num_stages)
    ]
    own = [[_own_name(name) for name in part] for part in parts]
    if all(all(part) for part in own):
        return own
    left_out.append(
        "pipeline.stages: modules have this model's names; those of torchtitan's models are tok_embeddings,"
        " layers.0, norm, output"
    )
    return parts


def _own_name(name: str) -> str:
    """What torchtitan calls a module of a Llama as transformers names it; empty where it is none."""
    if _LAYER.fullmatch(name):
        return name.removeprefix("model.")
    return _LLAMA.get(name, "")


def _mode(subject: Subject, left_out: list[str]) -> str:
    word = recompute_word(subject)
    if word is None:
        left_out.append("recompute: it differs between layers; full is written, which needs no more memory")
        return "full"
    if word is Recompute.SELECTIVE:
        left_out.append("recompute: selective: torchtitan has a list of its own of what is kept")
    return str(word)
