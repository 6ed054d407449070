"""How the ranks of a plan train, whatever its blocks: what the costs of every stage have in common."""

from __future__ import annotations

from dataclasses import dataclass

from autopar.cost.layout import Layout
from autopar.hardware.cluster import Cluster
from autopar.plan.decisions import Precision
from autopar.schedule.actions import SPLIT_BACKWARD


@dataclass(frozen=True, slots=True)
class Training:
    """How the ranks of one stage train.

    Attributes:
        data: ranks on the data axis.
        tensor: ranks on the tensor axis.
        optimizer: ``adamw``, ``adam``, ``sgd`` or ``sgd-momentum``.
        data_stride: distance in ranks of neighbours on the data axis; 0: the tensor degree, as in the usual
            order of the mesh.
        shard_group: ranks of the data axis among which ZeRO divides; 0: all of them.
        offload: what lives in host memory: of ``optimizer``, ``parameters``, ``activations``.
        splits_backward: whether the gradients of weights are made apart from those of inputs.
        pipeline: ranks on the pipeline axis.
    """

    cluster: Cluster
    data: int
    tensor: int
    precision: Precision
    optimizer: str
    data_stride: int = 0
    shard_group: int = 0
    offload: tuple[str, ...] = ()
    splits_backward: bool = False
    pipeline: int = 1

    @property
    def stride(self) -> int:
        """Distance in ranks of neighbours on the data axis."""
        return self.data_stride or self.tensor

    @property
    def group(self) -> int:
        """Ranks among which ZeRO divides."""
        return self.shard_group or self.data

    @property
    def num_groups(self) -> int:
        """Shard groups, replicas of each other."""
        return self.data // self.group

    @property
    def update_speed(self) -> float:
        """How many times as fast a rank updates alone as when all do: ranks of other stages, which share its
        cores, may have less to update.
        """
        return self.cluster.device.time_share if self.pipeline > 1 else 1.0

    def action_s(self, level: int) -> float:
        """Seconds of the host for each forward and each backward of a stage, beside its operators.

        Args:
            level: of ZeRO, in force.
        """
        device = self.cluster.device
        exchange_s = device.exchange_s if self.pipeline > 1 else 0.0
        return device.action_s + exchange_s + (device.sharded_action_s if level else 0.0)

    def step_s(self, level: int) -> float:
        """Likewise, once a step."""
        device = self.cluster.device
        return device.step_s + (device.sharded_step_s if level else 0.0)

    def level(self, zero: int) -> int:
        """The ZeRO level that is in force: 0 where a rank has neither peers nor its host to share with."""
        return 0 if self.group == 1 and "parameters" not in self.offload else zero

    def host_s(self, num_bytes: float) -> float:
        """Seconds of moving bytes between device and host."""
        return num_bytes / self.cluster.device.host.bytes_per_s


def training_of(layout: Layout, cluster: Cluster) -> Training:
    """How the ranks of a layout train."""
    return Training(
        cluster=cluster,
        data=layout.data,
        tensor=layout.tensor,
        precision=layout.precision,
        optimizer=layout.optimizer,
        data_stride=layout.stride("data"),
        shard_group=layout.shard_group,
        offload=layout.offload,
        splits_backward=layout.schedule in SPLIT_BACKWARD,
        pipeline=layout.pipeline,
    )
