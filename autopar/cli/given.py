"""The plan that a command line names, on the devices and with the changes that its flags ask for."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autopar.cli.collection import collect_seldom
from autopar.cli.devices_choice import (
    choose_cluster,
    is_replanned,
    memory_limit_bytes,
    on_cluster,
    tell_if_above,
)
from autopar.cli.files import existing_file
from autopar.cli.outcome import tell
from autopar.cli.source import load_source_of
from autopar.cli.watching import waiting
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import ClusterReference, Plan
from autopar.plan.merge import override
from autopar.plan.pins import parse_sets
from autopar.plan.read import read_plan

if TYPE_CHECKING:
    from autopar.capture.target import ModelSource


@dataclass(frozen=True, slots=True)
class Given:
    """A plan with everything that it is costed with.

    Attributes:
        unchanged: the plan without ``--set``; None where there is none.
        memory_limit_bytes: of a device; None: all that it has.
    """

    plan: Plan
    unchanged: Plan | None
    cluster: Cluster
    memory_limit_bytes: int | None
    source: ModelSource


def given_plan(args: argparse.Namespace, path: str, what: str = "PLAN") -> Given:
    """Reads a plan file, and applies ``--set`` and the flags of devices; says on stderr what that changes.

    Raises:
        UsageError: there is no such file, or a flag is wrong.
        PlanError: the file is wrong, or its model is not there.
    """
    plan = read_plan(existing_file(path, what))
    pins = parse_sets(args.sets)
    limit_bytes = memory_limit_bytes(args, plan)
    cluster, choice = choose_cluster(args, plan)
    tell_if_above(limit_bytes, cluster)
    if choice and not args.quiet:
        tell(choice)
    if plan.cluster is not None and is_replanned(cluster, plan.cluster) and not args.quiet:
        tell(_replanned(args, plan.cluster, cluster))
    here = on_cluster(args, plan, cluster, limit_bytes)
    plan = override(here, pins)
    collect_seldom()
    with waiting(args, "loading the model"):
        source = load_source_of(plan)
    return Given(plan, here if args.sets else None, cluster, limit_bytes, source)


def _replanned(args: argparse.Namespace, planned: ClusterReference, cluster: Cluster) -> str:
    """That a plan is costed for other devices than it names, and what names them."""
    flags = (args.cluster, args.device, args.gpus, args.gpus_per_node)
    why = ""
    if planned.file is not None and all(flag is None for flag in flags):
        why = (
            f" ({cluster.nodes} x {cluster.devices_per_node}), as its cluster file '{planned.file}' says: "
            "change that file, or delete cluster.file"
        )
    return (
        f"warning: the plan was made for {planned.num_devices} x {planned.device}; "
        f"costed for {cluster.num_devices} x {cluster.device.name}{why}"
    )
