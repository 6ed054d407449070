"""Reading of plan files: strict, every mistake an error at its place with what to do about it, and all of a
file's mistakes at once.

Only ``predicted`` is passed over: it is written for people and says what the plan was expected to do (and
which lines the planner chose, by their codes).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autopar.errors import PlanError
from autopar.hardware.yaml_lines import Place, parse_yaml, read_bytes
from autopar.plan.agreement import disagreements
from autopar.plan.bounds import Bound
from autopar.plan.decisions import ClusterReference, Mesh, ModelReference, Plan, Precision, ScheduleName
from autopar.plan.entry import Entry
from autopar.plan.keys import BOUNDED, PLAN, VERSION


def read_plan(path: str | Path) -> Plan:
    """Reads a plan file, whole or partial.

    Raises:
        PlanError: the file is not a plan; the message starts with ``path:line:column: `` and ends with the
            remedy, and ``problems`` are all that were found.
    """
    return parse_plan(read_bytes(path, PlanError), str(path))


def parse_plan(text: bytes | str, name: str = "<plan>") -> Plan:
    """As ``read_plan``, of text in memory; ``name`` stands for the file in messages."""
    problems: list[PlanError] = []
    document, places = parse_yaml(text, name, PlanError, problems)
    if document is None and not problems:
        raise PlanError("the file is empty; `autopar plan MODEL -o FILE` writes a plan", path=name)
    return plan_of_document(document, places, name, problems)


def plan_of_document(
    document: Any, places: Mapping[str, Place], path: str, problems: list[PlanError] | None = None
) -> Plan:
    """The plan that a document (the plain data of a file, of JSON, of a ``--set``) stands for.

    Args:
        places: of the dotted keys of the document.
        problems: what is wrong already.

    Raises:
        PlanError: tells of everything that is wrong.
    """
    entry = Entry(document, "", places, path, problems or [])
    found = entry.attempt(PLAN.read) or {}
    if found.get("version", VERSION) != VERSION:
        version = entry.at("version", found["version"])
        version.note(f"the plan is of version {version.value}; this autopar reads {VERSION}: plan anew")
    plan = _plan(found, places, path)
    entry.problems.extend(disagreements(plan))
    if entry.problems:
        raise PlanError.of(entry.problems)
    return plan


def _plan(found: Mapping[str, Any], places: Mapping[str, Place], path: str) -> Plan:
    bounds: dict[str, Bound] = {}

    def given(dotted: str) -> Any:
        """The decision under a key; None where it is absent, or a bound, which is kept aside."""
        value: Any = found
        for name in dotted.split("."):
            value = None if value is None else value.get(name)
        if isinstance(value, Bound) and dotted in BOUNDED:
            bounds[dotted] = value
            return None
        return value

    precision, schedule = given("precision"), given("pipeline.schedule")
    return Plan(
        version=VERSION,
        model=_model(given("model")),
        cluster=_cluster(given("cluster")),
        global_batch=given("batch.global"),
        micro_batch=given("batch.micro"),
        mesh=Mesh(given("mesh.pipeline"), given("mesh.data"), given("mesh.tensor"), given("mesh.order")),
        precision=None if precision is None else Precision(precision),
        optimizer=given("optimizer"),
        schedule=None if schedule is None else ScheduleName(schedule),
        virtual=given("pipeline.virtual"),
        stages=given("pipeline.stages"),
        stage_sizes=given("pipeline.blocks_per_stage") or (),
        tensor=given("tensor") or (),
        activations=given("activations") or (),
        operators=given("operators") or (),
        zero=given("zero"),
        shard_group=given("shard_group"),
        recompute=given("recompute") or (),
        offload=given("offload"),
        compile=given("compile"),
        bounds=bounds,
        chosen=given("predicted") or (),
        path=path,
        places=dict(places),
    )


def _model(found: Mapping[str, Any] | None) -> ModelReference | None:
    if not found or "source" not in found:
        return None  # which was noted
    return ModelReference(found["source"], found.get("args", {}), found.get("fingerprint"))


def _cluster(found: Mapping[str, Any] | None) -> ClusterReference | None:
    if not found or not {"device", "devices_per_node"} <= set(found):
        return None  # likewise
    return ClusterReference(
        device=found["device"],
        nodes=found.get("nodes", 1),
        devices_per_node=found["devices_per_node"],
        file=found.get("file"),
        memory_limit_bytes=found.get("memory_limit"),
    )
