"""Which devices a command is about: its flags, the plan's own, those of this machine, or the default."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from autopar.cli.files import existing_file
from autopar.cli.outcome import tell
from autopar.errors import UsageError
from autopar.hardware.catalog import cost_models_folder, find_local_device, load_device, resolve_device_name
from autopar.hardware.cluster import Cluster, cluster_of, make_cluster
from autopar.hardware.read_cluster import load_cluster
from autopar.plan.decisions import ClusterReference, Plan
from autopar.units import format_bytes, parse_bytes

DEFAULT_DEVICE = "h100-sxm-80gb"


def choose_cluster(
    args: argparse.Namespace, plan: Plan | None = None, default_device: str | None = None
) -> tuple[Cluster, str]:
    """The cluster, and a line that says which it is and why unless the flags name it.

    Args:
        args: with the flags of ``add_device_flags``.
        plan: whose ``cluster`` holds where the flags leave it open.
        default_device: where neither says anything; default: this machine's GPU, else ``DEFAULT_DEVICE``.

    Raises:
        UsageError: an unknown device, or flags that exclude each other.
        CostModelError: the cluster or cost-model file is malformed.
    """
    if args.cluster is not None:
        given = [flag for flag in ("device", "gpus", "gpus_per_node") if getattr(args, flag) is not None]
        if given:
            flag = given[0].replace("_", "-")
            raise UsageError(
                f"--cluster names the devices, so --{flag} has nothing to say; give one of the two"
            )
        return load_cluster(existing_file(args.cluster, "--cluster")), ""
    if plan is not None and plan.cluster is not None:
        return _like_planned(args, plan, plan.cluster), ""
    name, why, found = args.device, "", 0
    if name is None:
        name, why, found = _default_device(default_device)
    device = load_device(name)
    if args.gpus is None and args.gpus_per_node is None and found == 0:
        cluster = make_cluster(device)
        note = f"one node of {cluster.num_devices}: choose with --gpus"
        return (
            cluster,
            f"device: {cluster.num_devices} x {device.name} ({'; '.join(filter(None, [why, note]))})",
        )
    cluster = cluster_of(device, args.gpus or args.gpus_per_node or found, args.gpus_per_node)
    return cluster, f"device: {cluster.num_devices} x {device.name} ({why})" if why else ""


def memory_limit_bytes(args: argparse.Namespace, plan: Plan | None = None) -> int | None:
    """``--memory-limit`` in bytes, else the limit that a plan records for its own device."""
    if args.memory_limit is None:
        is_other = args.device is not None or args.cluster is not None
        return None if is_other or plan is None or plan.cluster is None else plan.cluster.memory_limit_bytes
    try:
        return parse_bytes(args.memory_limit)
    except UsageError as problem:
        raise UsageError(f"--memory-limit: {problem}") from problem


def tell_if_above(limit_bytes: int | None, cluster: Cluster) -> None:
    """A limit above what the devices have is a question about other devices."""
    device = cluster.device
    if limit_bytes is not None and limit_bytes > device.memory_bytes:
        tell(
            f"note: the memory limit of {format_bytes(limit_bytes)} is more than the "
            f"{format_bytes(device.memory_bytes)} of {device.name}: costed as if it had them"
        )


def reference_to(cluster: Cluster, memory_limit_bytes: int | None = None) -> ClusterReference:
    """How a plan names a cluster: a device that does not come with autopar by its file, links other than its
    usual ones by the cluster file, and what of the memory may be used where that is not all."""
    device = cluster.device
    is_shipped = Path(device.path).parent == cost_models_folder()
    return ClusterReference(
        device.name if is_shipped else device.path,
        cluster.nodes,
        cluster.devices_per_node,
        cluster.path or None,
        memory_limit_bytes,
    )


def on_cluster(
    args: argparse.Namespace, plan: Plan, cluster: Cluster, memory_limit_bytes: int | None
) -> Plan:
    """The plan on the cluster that was chosen for it; errors name what chose it."""
    given = [f for f in ("cluster", "gpus", "device", "gpus_per_node") if getattr(args, f) is not None]
    chosen = "the default devices" if plan.cluster is None else ""
    if given:
        chosen = f"--{given[0].replace('_', '-')} {getattr(args, given[0])}"
    sources = {**plan.sources, "cluster": chosen} if chosen else plan.sources
    return replace(plan, cluster=reference_to(cluster, memory_limit_bytes), sources=sources)


def is_replanned(cluster: Cluster, planned: ClusterReference) -> bool:
    """Whether the devices are others than those that a plan was made for."""
    try:
        name = resolve_device_name(planned.device)
    except UsageError:
        name = planned.device
    here = reference_to(cluster)
    # A cluster file with the same devices is the one that the plan names, or one given in its place.
    return here != replace(planned, device=name, file=here.file, memory_limit_bytes=None)


def _like_planned(args: argparse.Namespace, plan: Plan, planned: ClusterReference) -> Cluster:
    joined: Cluster | None = None
    if args.device is not None:
        device = load_device(args.device)
    elif planned.file is not None:
        joined = load_cluster(_cluster_file(plan, planned.file))
        device = joined.device
    else:
        try:
            device = load_device(planned.device)
        except UsageError as problem:
            raise plan.error("cluster.device", str(problem)) from problem
    if args.gpus is None and args.gpus_per_node is None:
        return joined or make_cluster(device, planned.nodes, planned.devices_per_node)
    per_node = args.gpus_per_node
    if per_node is None and args.gpus % planned.devices_per_node == 0:
        per_node = planned.devices_per_node
    cluster = cluster_of(device, args.gpus or planned.num_devices, per_node)
    if joined is None:
        return cluster
    return replace(joined, nodes=cluster.nodes, devices_per_node=cluster.devices_per_node)


def _cluster_file(plan: Plan, name: str) -> str:
    """The cluster file that a plan names, from here or from the plan's own folder."""
    for path in (Path(name), Path(plan.path).parent / name):
        if path.is_file():
            return str(path)
    raise plan.error(
        "cluster.file",
        f"the plan was made for the links of the cluster file '{name}', which is not here; give it with "
        "--cluster FILE, or delete cluster.file to cost the plan with the usual links of the device",
    )


def _default_device(default: str | None) -> tuple[str, str, int]:
    """Name, reason, and number of GPUs found."""
    if default is not None:
        return default, "the default here", 0
    import torch

    if not torch.cuda.is_available():
        return DEFAULT_DEVICE, "no GPU found on this machine; choose with --device", 0
    reported = torch.cuda.get_device_name(0)
    device = find_local_device(reported)
    if device is None:
        return (
            DEFAULT_DEVICE,
            f"there is no cost model for the '{reported}' found here; choose with --device",
            0,
        )
    return device.name, "found on this machine", torch.cuda.device_count()
