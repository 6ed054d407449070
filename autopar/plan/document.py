"""A plan as plain data, key by key as in the YAML: for ``--json`` and for the writer."""

from __future__ import annotations

from typing import Any

from autopar.plan.bounds import Bound
from autopar.plan.decisions import PatternLine, Plan
from autopar.plan.ranges import compact
from autopar.units import exact_bytes


def to_document(plan: Plan) -> dict[str, Any]:
    """Plain dicts, lists and scalars in the order of the file; what is absent in the plan is absent here."""

    def open_or(key: str, value: int | None) -> int | str | None:
        return str(plan.bounds[key]) if value is None and key in plan.bounds else value

    document: dict[str, Any] = {"version": plan.version}
    if plan.model is not None:
        document["model"] = _present(
            source=plan.model.source, args=dict(plan.model.args) or None, fingerprint=plan.model.fingerprint
        )
    if plan.cluster is not None:
        limit_bytes = plan.cluster.memory_limit_bytes
        document["cluster"] = _present(
            device=plan.cluster.device,
            nodes=plan.cluster.nodes,
            devices_per_node=plan.cluster.devices_per_node,
            file=plan.cluster.file,
            memory_limit=None if limit_bytes is None else exact_bytes(limit_bytes),
        )
    sections = {
        "batch": _present(**{"global": plan.global_batch, "micro": open_or("batch.micro", plan.micro_batch)}),
        "mesh": _present(
            pipeline=open_or("mesh.pipeline", plan.mesh.pipeline),
            data=open_or("mesh.data", plan.mesh.data),
            tensor=open_or("mesh.tensor", plan.mesh.tensor),
            order=None if plan.mesh.order is None else list(plan.mesh.order),
        ),
        "precision": None if plan.precision is None else str(plan.precision),
        "optimizer": plan.optimizer,
        "pipeline": _present(
            schedule=None if plan.schedule is None else str(plan.schedule),
            virtual=open_or("pipeline.virtual", plan.virtual),
            stages=None if plan.stages is None else [list(compact(stage)) for stage in plan.stages],
            blocks_per_stage={size.stages: _size(size.bound) for size in plan.stage_sizes} or None,
        ),
        "tensor": _words(plan.tensor),
        "activations": _words(plan.activations),
        "operators": _words(plan.operators),
        "zero": list(plan.zero) if isinstance(plan.zero, tuple) else open_or("zero", plan.zero),
        "shard_group": open_or("shard_group", plan.shard_group),
        "recompute": _recompute(plan.recompute),
        "offload": _offload(plan.offload),
        "compile": plan.compile,
    }
    return document | {key: value for key, value in sections.items() if value not in (None, {})}


def _present(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _words(lines: tuple[PatternLine, ...]) -> dict[str, str]:
    words: dict[str, str] = {}
    for line in lines:
        words.setdefault(line.pattern, line.word)  # the first that matches wins
    return words


def _recompute(lines: tuple[PatternLine, ...]) -> dict[str, str] | str:
    words = _words(lines)
    return words["*"] if list(words) == ["*"] else words


def _offload(offload: str | None) -> str | list[str] | None:
    return offload.split(",") if offload and "," in offload else offload


def _size(bound: Bound) -> str | int:
    return bound.least if bound.least == bound.most else str(bound)
