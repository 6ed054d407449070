"""A configuration of Hugging Face accelerate: ``accelerate launch --config_file`` (1.15, FSDP2)."""

from __future__ import annotations

from typing import Any

import yaml

from autopar.export.exported import Exported, commented, header, one_zero_level, recompute_word
from autopar.export.subject import Subject
from autopar.plan.decisions import Precision, Recompute

_PRECISION = {Precision.BF16: "bf16", Precision.FP16: "fp16", Precision.FP32: "no"}


def to_accelerate(subject: Subject) -> Exported:
    """Data and tensor axes, ZeRO, recompute, precision; gradient accumulation is the script's."""
    left_out: list[str] = []
    plan = subject.plan
    pipeline, data, tensor = subject.degrees
    if pipeline > 1:
        left_out.append(
            f"mesh.pipeline: {pipeline}: accelerate trains without one; {data * tensor} processes are written"
        )
    level = one_zero_level(subject, left_out)
    per_node = plan.cluster.devices_per_node if plan.cluster else data * tensor
    nodes = -(-data * tensor // per_node)
    document: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "FSDP" if level or tensor > 1 else "MULTI_GPU" if data > 1 else "NO",
        "mixed_precision": _PRECISION[plan.precision or Precision.FP32],
        "num_machines": nodes,
        "num_processes": data * tensor,
        "machine_rank": 0,
        "main_training_function": "main",
        "use_cpu": False,
    }
    if level or tensor > 1:
        document["fsdp_config"] = _fsdp(subject, level, left_out)
        document["parallelism_config"] = _degrees(subject, level)
    elif recompute_word(subject) is not Recompute.NONE:
        left_out.append("recompute: without FSDP, model.gradient_checkpointing_enable() in the script")
    if tensor > 1:
        left_out.append("tensor, activations: load the model with tp_plan; see `--to hf-tp-plan`")
    if plan.compile:
        document["dynamo_config"] = {"dynamo_backend": "INDUCTOR"}
    for word in plan.offloaded:
        if word != "parameters":
            left_out.append(f"offload: {word}: FSDP offloads parameters, gradients and optimizer together")
    comments = header(subject, "accelerate", left_out)
    comments.append(
        f"In the script: batches of {plan.micro_batch} and"
        f" Accelerator(gradient_accumulation_steps={plan.num_micro_batches})."
    )
    return Exported(commented(comments) + yaml.safe_dump(document, sort_keys=False), tuple(left_out))


def _fsdp(subject: Subject, level: int, left_out: list[str]) -> dict[str, Any]:
    if level in (0, 1):
        left_out.append(f"zero: {level}: FSDP2 shards optimizer and gradients at least, which is level 2")
    word = recompute_word(subject)
    if word is None:
        left_out.append(
            "recompute: it differs between layers; all of them are written, which needs no more memory"
        )
    elif word is Recompute.SELECTIVE:
        left_out.append("recompute: selective: accelerate recomputes whole layers, which is full")
    classes = sorted({block.module_class for block in subject.layers})
    entries: dict[str, Any] = {
        "fsdp_version": 2,
        "fsdp_reshard_after_forward": level == 3,
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP" if classes else "SIZE_BASED_WRAP",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": False,
        "fsdp_offload_params": "parameters" in subject.plan.offloaded,
        "fsdp_activation_checkpointing": word is not Recompute.NONE,
    }
    if classes:
        entries["fsdp_transformer_layer_cls_to_wrap"] = ",".join(classes)
    return entries


def _degrees(subject: Subject, level: int) -> dict[str, int]:
    _, data, tensor = subject.degrees
    group = subject.shard_group if level else data
    return {
        "parallelism_config_dp_replicate_size": data // group,
        "parallelism_config_dp_shard_size": group,
        "parallelism_config_tp_size": tensor,
        "parallelism_config_cp_size": 1,
    }
