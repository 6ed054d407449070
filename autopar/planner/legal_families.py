"""Which degrees and micro-batches a model, a cluster and the constraints allow, and how each may be run."""

from __future__ import annotations

from autopar.capture.model_graph import ModelGraph
from autopar.errors import PlanError
from autopar.hardware.cluster import Cluster
from autopar.lower.supported import check_supported
from autopar.plan.agreement import check_agreement
from autopar.plan.decisions import Plan, ScheduleName
from autopar.planner.model_choices import ModelChoices
from autopar.planner.no_candidate import no_candidate
from autopar.solve.candidate import Family
from autopar.solve.candidates import FEW_DEVICES, OuterPins, Space, candidates, divisors, families, meshes


def legal_families(
    choices: ModelChoices, settled: Plan, cluster: Cluster
) -> tuple[tuple[Family, ...], Space]:
    """Every setting of degrees and micro-batch that the model, the cluster and the constraints allow, and how
    each may be run.

    Raises:
        InfeasibleError: there is none; lists the legal degrees.
        PlanError: the constraints hold at no tensor degree.
    """
    pins = outer_pins(settled)
    degrees, problem = legal_tensor_degrees(choices, settled, cluster)
    if problem is not None and not degrees:
        raise problem
    assert settled.global_batch is not None
    space = Space(
        pins, choices.num_blocks, cluster.nodes, cluster.devices_per_node, _Support(choices.graph).allows
    )
    legal = tuple(meshes(cluster.num_devices, choices.num_blocks, degrees, pins))
    found = tuple(
        family
        for family in families(settled.global_batch, legal, pins)
        if next(candidates(family, space), None) is not None
    )
    if not found:
        raise no_candidate(settled, degrees, space)
    return found, space


def outer_pins(settled: Plan) -> OuterPins:
    """The outer decisions that constraints fix."""
    return OuterPins(
        settled.mesh,
        settled.micro_batch,
        settled.zero,
        settled.schedule,
        settled.virtual,
        len(settled.stages) if settled.stages is not None else None,
        settled.shard_group,
        settled.offloaded if settled.offload is not None else None,
        settled.bounds,
        settled.stage_sizes,
    )


class _Support:
    """Which outer decisions go together, as the lowering sees it."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._known: dict[object, bool] = {}

    def allows(self, schedule: ScheduleName, virtual: int, zero: int, offload: tuple[str, ...]) -> bool:
        """Whether a plan with these decisions can be run."""
        key = (schedule, virtual, zero, offload)
        if key not in self._known:
            plan = Plan(schedule=schedule, virtual=virtual, zero=zero, offload=",".join(offload) or "none")
            try:
                check_agreement(plan)
                check_supported(plan, self._graph)
                self._known[key] = True
            except PlanError:
                self._known[key] = False
        return self._known[key]


def legal_tensor_degrees(
    choices: ModelChoices, settled: Plan, cluster: Cluster
) -> tuple[tuple[int, ...], PlanError | None]:
    """Degrees that divide something of the model, of many devices only those that fit into a node; and why
    the constraints forbid others."""
    problem: PlanError | None = None
    degrees = [1]
    for degree in divisors(cluster.num_devices):
        is_wanted = settled.mesh.tensor == degree or cluster.num_devices <= FEW_DEVICES
        if degree == 1 or (cluster.devices_per_node % degree and not is_wanted):
            continue
        try:
            if choices.shards_anything(degree):
                degrees.append(degree)
        except PlanError as refused:
            problem = problem or refused
    if problem is not None and settled.mesh.tensor not in (None, 1) and settled.mesh.tensor not in degrees:
        raise problem
    return tuple(degrees), problem
