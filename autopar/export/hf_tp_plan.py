"""A tensor-parallel plan of transformers: pattern of modules -> style, for ``from_pretrained(tp_plan=...)``.

Styles are those of ``transformers.integrations.tensor_parallel`` (transformers 5).
"""

from __future__ import annotations

import json

from autopar.export.exported import Exported, general
from autopar.export.subject import ExportedParameter, Subject
from autopar.sharding.placement import Shard

_LINEAR = {0: "colwise", 1: "rowwise"}
_PACKED = {0: "packed_colwise", 1: "packed_rowwise"}
_EMBEDDING = {0: "embedding_rowwise", 1: "embedding_colwise"}


def to_hf_tp_plan(subject: Subject) -> Exported:
    """The tensor axis alone, as JSON; all else is the trainer's, and is listed."""
    left_out: list[str] = []
    styles: dict[str, str] = {}
    clashes: set[str] = set()
    last = subject.parameters[-1].module if subject.parameters else ""
    for parameter in subject.parameters:
        style = _style(parameter, parameter.module == last, left_out)
        pattern = general(parameter.module)
        if parameter.num_dims < 2 and not style:
            continue  # a bias follows the weight of its module
        if styles.get(pattern, style) != style:
            clashes.add(pattern)
        styles[pattern] = style
    for pattern in sorted(clashes):
        left_out.append(f"tensor: {pattern}: its layers differ; one pattern stands for all of them")
    left_out += _others(subject)
    chosen = {pattern: style for pattern, style in styles.items() if style and pattern not in clashes}
    if subject.degrees[2] > 1 and not chosen:
        left_out.append(f"mesh.tensor: {subject.degrees[2]}: no module gets a style: every rank holds all")
    return Exported(json.dumps(chosen, indent=2) + "\n", tuple(left_out))


def _style(parameter: ExportedParameter, is_head: bool, left_out: list[str]) -> str:
    placement = parameter.placement
    if not isinstance(placement, Shard) or parameter.num_dims != 2:
        if isinstance(placement, Shard) and parameter.num_dims > 2:
            left_out.append(f"tensor: {parameter.name}: no style shards a {parameter.module_class}")
        return ""
    if parameter.module_class == "Embedding":
        return _EMBEDDING[placement.dim]
    if parameter.module_class != "Linear":
        left_out.append(
            f"tensor: {parameter.name}: a {parameter.module_class} is no nn.Linear: there is no style for it"
        )
        return ""
    if is_head and placement.dim == 0:
        return "colwise_gather_output"
    return (_PACKED if placement.blocks > 1 else _LINEAR)[placement.dim]


def _others(subject: Subject) -> list[str]:
    plan = subject.plan
    pipeline, data, tensor = subject.degrees
    found = []
    if not subject.is_hugging_face:
        found.append("model: it is none of transformers', which are what styles are applied to")
    if tensor == 1:
        found.append("mesh.tensor: 1: there is nothing to split")
    if pipeline > 1:
        found.append(f"mesh.pipeline: {pipeline}: transformers has no pipeline for training")
    if data > 1:
        levels = sorted(set(subject.zero_levels))
        found.append(f"mesh.data: {data}, zero: {levels}: the trainer's; see `--to accelerate`")
    words = sorted({b.output_word for b in subject.blocks} - {"replicate"})
    if tensor > 1 and words:
        found.append(f"activations: {', '.join(words)}: they are whole between the layers of transformers")
    if any(str(b.recompute) != "none" for b in subject.blocks):
        found.append("recompute: model.gradient_checkpointing_enable() is transformers' way")
    if plan.operators:
        found.append(f"operators: {len(plan.operators)} lines: styles are of modules")
    found.append(f"batch: micro-batch {plan.micro_batch}, global batch {plan.global_batch}: the trainer's")
    return found
