"""How a given plan divides the blocks that are timed, and what their time says about other shardings: how
much slower than thought divided operators are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from autopar.capture.model_graph import ModelGraph
from autopar.cost.blocks import operator_sums, read_block
from autopar.cost.measured import correction, slowdown
from autopar.errors import AutoparError
from autopar.hardware.blocks import MeasuredBlock
from autopar.hardware.cluster import make_cluster
from autopar.hardware.device import Device
from autopar.hardware.read_device import read_device
from autopar.lower.resolve import resolve
from autopar.plan.decisions import Plan
from autopar.profile.block_times import BlockTimes, BlockToTime
from autopar.profile.cost_model import cost_model_text
from autopar.profile.settings import ProfileResult
from autopar.sharding.propagation import BlockSharding


def shardings_of(plan: Plan, graph: ModelGraph) -> dict[str, BlockSharding]:
    """By class, how a plan divides a block of a model at any micro-batch; without those left whole."""
    try:
        resolved = resolve(
            replace(plan, micro_batch=graph.micro_batch, global_batch=graph.micro_batch), graph
        )
    except AutoparError:  # so few samples cannot be divided as the plan says
        return {}
    found: dict[str, BlockSharding] = {}
    for decision in resolved.blocks:
        if any(not rule.is_replicated for rule in decision.sharding.rules.values()):
            found.setdefault(decision.block.class_key, decision.sharding)
    return found


def with_slowdowns(result: ProfileResult, timed: Iterable[BlockToTime], folder: Path) -> ProfileResult:
    """What the times of sharded blocks say, for the cost model that the rest of the profile makes.

    Args:
        timed: what the block times are of.
        folder: for a file that is read back.
    """
    if all(times.degree == 1 for times in result.blocks):
        return result
    path = folder / "without-blocks.yaml"
    path.write_text(cost_model_text(replace(result, blocks=()), "without-blocks"))
    device = read_device(path)
    whole = {(b.class_key, b.precision): b for b in result.blocks if b.degree == 1}
    items = {(item.block.class_key, item.precision, item.degree): item for item in timed}
    blocks = []
    for times in result.blocks:
        item = items[times.class_key, times.precision, times.degree]
        if item.sharding is not None:
            known = whole[times.class_key, times.precision]
            times = _explained(times, known, item, device, result.settings.with_collectives)
        blocks.append(times)
    return replace(result, blocks=tuple(blocks))


def _explained(
    times: BlockTimes, whole: BlockTimes, item: BlockToTime, device: Device, with_collectives: bool
) -> BlockTimes:
    assert item.sharding is not None
    known = MeasuredBlock(
        whole.class_key, str(whole.precision), whole.forward.median_s, whole.backward.median_s
    )
    with_whole = replace(device, blocks={whole.class_key: known})
    cluster = make_cluster(device, 1, device.default_devices_per_node)
    sums = operator_sums(item.block, item.sharding, cluster)
    factors = correction(item.block, with_whole).whole
    forward_s, backward_s = times.forward.median_s, times.backward.median_s
    if with_collectives:  # what they take by themselves is charged by size; the rest is computing
        thought = read_block(item.block, item.sharding, cluster)
        forward_s, backward_s = forward_s - thought.forward_comm_s, backward_s - thought.backward_comm_s
    return replace(times, slowdown=slowdown((forward_s, backward_s), *sums, factors))
