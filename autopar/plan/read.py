"""Reading of plan files: strict, every mistake an error at its line with what to do about it.

Only ``predicted`` is passed over: it is written for people and says what the plan was expected to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from autopar.errors import PlanError, UsageError
from autopar.hardware.yaml_lines import Place, parse_yaml, read_bytes
from autopar.plan.agreement import check_agreement
from autopar.plan.decisions import (
    MESH_AXES,
    ClusterReference,
    Mesh,
    ModelReference,
    PatternLine,
    Plan,
    Precision,
    Recompute,
    ScheduleName,
)
from autopar.plan.entry import Entry, describe
from autopar.plan.ranges import expand
from autopar.units import parse_bytes

VERSION = 1
SECTIONS = {
    "version": (),
    "model": ("source", "args", "fingerprint"),
    "cluster": ("device", "nodes", "devices_per_node", "file", "memory_limit"),
    "batch": ("global", "micro"),
    "mesh": (*MESH_AXES, "order"),
    "precision": (),
    "optimizer": (),
    "pipeline": ("schedule", "virtual", "stages"),
    "tensor": (),
    "activations": (),
    "operators": (),
    "zero": (),
    "shard_group": (),
    "recompute": (),
    "offload": (),
    "compile": (),
    "predicted": (),
}
"""Every key of a plan with the keys below it, in the order in which they are written."""

OPTIMIZERS = ("adamw", "adam", "sgd", "sgd-momentum")
TENSOR_WORDS = ("column", "row", "vocab", "replicate")
ACTIVATION_WORDS = ("replicate", "sequence", "batch")
OFFLOAD_WORDS = ("none", "optimizer", "parameters", "activations")

_T = TypeVar("_T")
_SHARD = re.compile(r"shard\(\s*\d+\s*(,\s*\d+\s*)?\)")


def read_plan(path: str | Path) -> Plan:
    """Reads a plan file, whole or partial.

    Raises:
        PlanError: the file is not a plan; the message starts with ``path:line: `` and ends with the remedy.
    """
    name = str(path)
    return parse_plan(read_bytes(path, PlanError), name)


def parse_plan(text: bytes | str, name: str = "<plan>") -> Plan:
    """As ``read_plan``, of text in memory; ``name`` stands for the file in messages."""
    document, places = parse_yaml(text, name, PlanError)
    if document is None:
        raise PlanError("the file is empty; `autopar plan MODEL -o FILE` writes a plan", path=name)
    return plan_of_document(document, places, name)


def plan_of_document(document: Any, places: Mapping[str, Place], path: str) -> Plan:
    """The plan that a document (the plain data of a file, of JSON, of a ``--set``) stands for."""
    top = Entry(document, "", places, path).section(SECTIONS)
    if "version" in top and top["version"].integer(1) != VERSION:
        top["version"].fail(
            f"the plan is of version {top['version'].value}; this autopar reads {VERSION}: plan anew"
        )
    batch, mesh, pipeline = (_below(top, key) for key in ("batch", "mesh", "pipeline"))
    plan = Plan(
        version=VERSION,
        model=_given(top, "model", _model),
        cluster=_given(top, "cluster", _cluster),
        global_batch=_given(batch, "global", _degree),
        micro_batch=_given(batch, "micro", _degree),
        mesh=Mesh(
            pipeline=_given(mesh, "pipeline", _degree),
            data=_given(mesh, "data", _degree),
            tensor=_given(mesh, "tensor", _degree),
            order=_given(mesh, "order", _order),
        ),
        precision=_given(top, "precision", lambda entry: Precision(entry.word(Precision))),
        optimizer=_given(top, "optimizer", lambda entry: entry.word(OPTIMIZERS)),
        schedule=_given(pipeline, "schedule", lambda entry: ScheduleName(entry.word(ScheduleName))),
        virtual=_given(pipeline, "virtual", _degree),
        stages=_given(pipeline, "stages", _stages),
        tensor=_patterns(top, "tensor", lambda entry: _placement(entry, TENSOR_WORDS)),
        activations=_patterns(top, "activations", lambda entry: _placement(entry, ACTIVATION_WORDS)),
        operators=_patterns(top, "operators", lambda entry: entry.text('"shard(2), replicate -> shard(2)"')),
        zero=_given(top, "zero", _zero),
        shard_group=_given(top, "shard_group", _degree),
        recompute=_patterns(top, "recompute", lambda entry: entry.word(Recompute)),
        offload=_given(top, "offload", _offload),
        compile=_given(top, "compile", Entry.boolean),
        path=path,
        places=dict(places),
    )
    check_agreement(plan)
    return plan


def _below(top: Mapping[str, Entry], key: str) -> dict[str, Entry]:
    return top[key].section(SECTIONS[key]) if key in top else {}


def _given(entries: Mapping[str, Entry], key: str, read: Callable[[Entry], _T]) -> _T | None:
    return read(entries[key]) if key in entries else None


def _degree(entry: Entry) -> int:
    return entry.integer(1)


def _model(entry: Entry) -> ModelReference:
    keys = entry.section(SECTIONS["model"])
    if "source" not in keys:
        entry.fail("'model' has no source; add e.g. `source: examples/gpt.py`, or delete 'model'")
    return ModelReference(
        source=keys["source"].text("examples/gpt.py"),
        args={name: value.scalar() for name, value in keys["args"].pairs()} if "args" in keys else {},
        fingerprint=_given(
            keys, "fingerprint", lambda value: value.text('"3f9c0a" (quote it if it is all digits)')
        ),
    )


def _cluster(entry: Entry) -> ClusterReference:
    keys = entry.section(SECTIONS["cluster"])
    for key, example in (("device", "h100-sxm-80gb"), ("devices_per_node", "8")):
        if key not in keys:
            entry.fail(f"'cluster' has no {key}; add e.g. `{key}: {example}`, or delete 'cluster'")
    return ClusterReference(
        device=keys["device"].text("h100-sxm-80gb"),
        nodes=keys["nodes"].integer(1) if "nodes" in keys else 1,
        devices_per_node=keys["devices_per_node"].integer(1),
        file=_given(keys, "file", lambda value: value.text("cluster.yaml")),
        memory_limit_bytes=_given(keys, "memory_limit", _size),
    )


def _size(entry: Entry) -> int:
    try:
        return parse_bytes(entry.text("70GiB"))
    except UsageError as problem:
        entry.fail(str(problem))


def _order(entry: Entry) -> tuple[str, str, str]:
    """The axes of the mesh: a list, or one text with commas (``--set mesh.order=data,pipeline,tensor``)."""
    if isinstance(entry.value, str):
        entry = Entry([word.strip() for word in entry.value.split(",")], entry.key, entry.places, entry.path)
    words = [item.word(MESH_AXES) for item in entry.items()]
    if sorted(words) != sorted(MESH_AXES):
        missing = [axis for axis in MESH_AXES if axis not in words]
        problem = f"leaves out {', '.join(missing)}" if missing else "names an axis twice"
        entry.fail(
            f"'mesh.order' is [{', '.join(words)}], which {problem}; name every axis once, the one that "
            f"varies slowest over the ranks first, e.g. [{', '.join(MESH_AXES)}]"
        )
    return words[0], words[1], words[2]


def _stages(entry: Entry) -> tuple[tuple[str, ...], ...]:
    seen: dict[str, int] = {}
    stages = []
    for index, stage in enumerate(entry.items()):
        names: list[str] = []
        for item in stage.items():
            for name in _expanded(item):
                if name in seen:
                    again = "twice" if seen[name] == index else f"again; it is already in stage {seen[name]}"
                    item.fail(
                        f"stage {index} names block '{name}' {again}; every block runs once: delete one"
                    )
                seen[name] = index
                names.append(name)
        if not names:
            stage.fail(f"stage {index} is empty; give it blocks, or delete it and lower mesh.pipeline")
        stages.append(tuple(names))
    if not stages:
        entry.fail("'pipeline.stages' is empty; list the blocks of each stage, or delete the key")
    return tuple(stages)


def _expanded(item: Entry) -> tuple[str, ...]:
    try:
        return expand(item.name())
    except ValueError as problem:
        item.fail(f"in '{item.key}', {problem}")


def _placement(entry: Entry, words: tuple[str, ...]) -> str:
    if isinstance(entry.value, str) and _SHARD.fullmatch(entry.value.strip()):
        return re.sub(r"\s*,\s*", ", ", re.sub(r"\s*([()])\s*", r"\1", entry.value.strip()))
    return entry.word(words, also=", shard(d)")


def _patterns(
    entries: Mapping[str, Entry], key: str, read: Callable[[Entry], str]
) -> tuple[PatternLine, ...]:
    """The lines of a pattern section; one word in place of the mapping holds for every name."""
    if key not in entries:
        return ()
    section = entries[key]
    if isinstance(section.value, str):
        return (PatternLine("*", read(section), section.line),)
    lines = []
    for pattern, entry in section.pairs():
        if not pattern.strip() or "" in pattern.split("."):
            entry.fail(f"'{pattern}' in '{key}' names nothing; write a name such as blocks.*.attn, or \"*\"")
        lines.append(PatternLine(pattern, read(entry), entry.line))
    return tuple(lines)


def _zero(entry: Entry) -> int | tuple[int, ...]:
    if isinstance(entry.value, list):
        if not entry.value:
            entry.fail("'zero' is an empty list; write one ZeRO level from 0 to 3 for each stage")
        return tuple(item.integer(0, 3) for item in entry.items())
    if isinstance(entry.value, dict):
        entry.fail("'zero' is a mapping; write one ZeRO level from 0 to 3, or a list with one for each stage")
    return entry.integer(0, 3)


def _offload(entry: Entry) -> str:
    if not isinstance(entry.value, list):
        return entry.word(OFFLOAD_WORDS, also=", or a list of them")
    words = [item.word(OFFLOAD_WORDS[1:]) for item in entry.items()]
    for item, word in zip(entry.items(), words, strict=True):
        if words.count(word) > 1:
            item.fail(f"'offload' names {describe(word)} twice; delete one")
    return ",".join(sorted(words, key=OFFLOAD_WORDS.index)) or "none"
