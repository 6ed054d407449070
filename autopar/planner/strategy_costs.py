"""What strategies and conversions of the operator ILP cost, in the coin of the lowered block.

Costs are those of ``cost.operators`` and of the collectives that the lowering will insert, so that the ILP
minimises what the lowered block will be costed at.
"""

from __future__ import annotations

from torch import fx

from autopar.capture.model_graph import Block, TensorSpec
from autopar.cost.measured import correction
from autopar.cost.operators import operator_seconds, rule_seconds
from autopar.hardware.cluster import Cluster
from autopar.hardware.link import CollectiveKind
from autopar.lower.block import transfers_inside
from autopar.sharding.block_facts import BlockFacts
from autopar.sharding.placement import PARTIAL, REPLICATE, Placement, Shard, local_shape, parse_placement
from autopar.sharding.redistribution import conversion, kept_as_shard
from autopar.sharding.rule import Rule
from autopar.sharding.rules.operator import whole_bytes
from autopar.solve.operator_problem import Cost, Demand

# Bytes per element that a parameter holds on a rank: master, gradient and two moments, all fp32.
_HELD_BYTES = 16


class StrategyCosts:
    """Costs of one block at one tensor degree.

    Args:
        stride: distance in ranks between neighbours on the tensor axis.
    """

    def __init__(self, block: Block, degree: int, cluster: Cluster, stride: int, facts: BlockFacts) -> None:
        self._degree = degree
        self._cluster = cluster
        self._device = cluster.device
        self._stride = stride
        self._gradients = facts.gradients
        self._factors = correction(block, cluster.device, degree)
        self._conversions: dict[tuple[TensorSpec, str, Demand, bool, bool], Cost] = {}

    def parameter(self, num_elements: int, placement: Placement) -> Cost:
        """What a parameter holds."""
        shards = self._degree if isinstance(placement, Shard) else 1
        return Cost(0.0, 0.0, _HELD_BYTES * (num_elements // shards))

    def rule(self, node: fx.Node, rule: Rule) -> Cost:
        """What a call costs that runs by a rule."""
        cost = rule_seconds(node, rule, self._degree, self._gradients, self._device)
        factors = self._factors.whole if rule.is_replicated else self._factors.divided
        seconds = cost.forward_s * factors.forward + cost.backward_s * factors.backward
        for transfer in transfers_inside(node, rule):
            seconds += self._cluster.collective_s(
                transfer.kind, transfer.num_bytes, self._degree, self._stride
            )
        saved_bytes = 0.0
        if seconds and node.name in self._gradients:
            shards = self._degree if isinstance(rule.output, Shard) else 1
            saved_bytes = whole_bytes(node) / shards
        return Cost(seconds, saved_bytes)

    def conversion(
        self, spec: TensorSpec, source: str, demand: Demand, has_gradient: bool, keeps_shard: bool
    ) -> Cost:
        """What it costs to hand on a value that is placed as ``source``; the same for all of one shape.

        Args:
            keeps_shard: only products read it, which may keep its shard and gather again.
        """
        key = (spec, source, demand, has_gradient, keeps_shard)
        if key not in self._conversions:
            self._conversions[key] = self._convert(*key)
        return self._conversions[key]

    def _convert(
        self, spec: TensorSpec, source: str, demand: Demand, has_gradient: bool, keeps_shard: bool
    ) -> Cost:
        here, wanted = parse_placement(source), parse_placement(demand.placement)
        assert here is not None and wanted is not None
        seconds, saved_bytes, factors = 0.0, 0.0, self._factors.divided
        for step in conversion(here, wanted, demand.gradient_partial):
            after = _after(step.function, step.arguments, wanted)
            step = kept_as_shard(step) if keeps_shard and has_gradient else step
            pair = (self._local(spec, here), self._local(spec, after))
            local = operator_seconds(
                f"axis.{step.function}", pair[:1], pair[1:], (has_gradient,), self._device
            )
            seconds += local.forward_s * factors.forward + local.backward_s * factors.backward
            for kind, runs in ((step.forward, True), (step.backward, has_gradient)):
                if kind is not None and runs:
                    share = self._degree if kind is CollectiveKind.ALL_TO_ALL else 1
                    seconds += self._cluster.collective_s(
                        kind, spec.num_bytes // share, self._degree, self._stride
                    )
            if step.again is not None:
                again_s = self._cluster.collective_s(step.again, spec.num_bytes, self._degree, self._stride)
                seconds += local.forward_s * factors.backward + (1 - self._device.overlap) * again_s
            elif has_gradient and after != here:
                saved_bytes += pair[1].num_bytes
            here = after
        return Cost(seconds, saved_bytes)

    def _local(self, spec: TensorSpec, placement: Placement) -> TensorSpec:
        return TensorSpec(local_shape(spec.shape, placement, self._degree), spec.dtype)


def _after(function: str, arguments: tuple[int, ...], wanted: Placement) -> Placement:
    """Placement after one conversion step."""
    if function.startswith(("gather", "all_reduce", "copy_to")):
        return REPLICATE
    if function in ("to_partial", "pad_to_partial"):
        return PARTIAL
    return wanted
