"""Every key of cost-model and cluster files: what the reader checks and what the JSON Schemas are made of."""

from __future__ import annotations

from autopar.hardware.device import PRECISIONS
from autopar.hardware.kinds import Count, Curves, Flag, Named, Number, Section, Table, Text, Texts
from autopar.hardware.link import CollectiveKind

OWN_CURVES = (CollectiveKind.ALL_GATHER, CollectiveKind.REDUCE_SCATTER, CollectiveKind.ALL_TO_ALL)
"""Collectives other than the all-reduce that may have curves of their own."""

_COMPUTE = Section(
    {
        "peak": Section({precision: Number("TFLOP/s", nullable=True) for precision in PRECISIONS}),
        "matmul_efficiency": Section(
            {
                "half": Table("cube_edge", "fraction", optional=True),
                "fp32": Table("cube_edge", "fraction"),
            }
        ),
        "matmul_overhead": Number("elements"),
        "attention_efficiency": Number("fraction"),
        "launch": Number("us"),
        "dispatch": Number("us"),
        "time_share": Number("devices", optional=True, nullable=True),
        "overlap": Number("fraction", optional=True, nullable=True),
        "action": Number("us", optional=True, nullable=True),
        "step": Number("us", optional=True, nullable=True),
        "exchange": Number("us", optional=True, nullable=True),
        "sharded_action": Number("us", optional=True, nullable=True),
        "sharded_step": Number("us", optional=True, nullable=True),
        "tensor_parameter": Number("us", optional=True, nullable=True),
    }
)

_MEMORY = Section(
    {
        "capacity": Number("GiB"),
        "framework_reserve": Number("GiB"),
        "bandwidth": Number("GB/s"),
        "efficiency": Number("fraction"),
        "rates": Table("B", "GB/s", optional=True),
        "update": Number("GB/s", optional=True, nullable=True),
        "update_rates": Table("B", "GB/s", optional=True),
    }
)

_INTRA_NODE = Section(
    {
        "kind": Text(),
        "bandwidth": Number("GB/s"),
        "ring_bandwidth": Number("GB/s"),
        "latency": Number("us"),
        "shared": Flag(),
        "messages": Table("B", "GB/s", optional=True),
        "messages_alone": Table("B", "GB/s", optional=True),
        "all_reduce": Curves("B", "GB/s"),
        **{str(kind): Curves("B", "GB/s") for kind in OWN_CURVES},
    }
)

_SHARDED = Section({"forward": Number("times"), "backward": Number("times")})

_BLOCK = Section(
    {
        "name": Text(),
        "precision": Text(words=PRECISIONS),
        "forward": Number("us"),
        "backward": Number("us"),
        "update": Number("us", optional=True, nullable=True),
        "sharded": Named(_SHARDED, optional=True),
    }
)

DEVICE = Section(
    {
        "version": Count(only=1, of="cost models"),
        "name": Text(),
        "description": Text(),
        "kind": Text(words=("gpu", "cpu")),
        "detected_as": Texts(),
        "sources": Named(Text()),
        "compute": _COMPUTE,
        "memory": _MEMORY,
        "intra_node": _INTRA_NODE,
        "network": Section(
            {
                "kind": Text(),
                "bandwidth_per_device": Number("GB/s"),
                "efficiency": Number("fraction"),
                "latency": Number("us"),
            }
        ),
        "host": Section(
            {
                "pcie": Number("GB/s"),
                "memory": Number("GiB"),
                "memory_bandwidth": Number("GB/s", optional=True),
            }
        ),
        "default_devices_per_node": Number("devices"),
        "blocks": Named(_BLOCK, optional=True),
    }
)
"""A cost model: one device, and what usually joins it to others."""


def _own(unit: str) -> Number:
    """A number of a cluster file, which need not cite."""
    return Number(unit, optional=True, cited=False)


CLUSTER = Section(
    {
        "version": Count(only=1, of="cluster files"),
        "device": Text(),
        "nodes": Count(),
        "devices_per_node": Count(optional=True),
        "memory": Section({"capacity": _own("GiB")}, optional=True),
        "intra_node": Section(
            {"bandwidth": _own("GB/s"), "ring_bandwidth": _own("GB/s"), "latency": _own("us")},
            optional=True,
        ),
        "network": Section(
            {"bandwidth_per_device": _own("GB/s"), "efficiency": _own("fraction"), "latency": _own("us")},
            optional=True,
        ),
    }
)
"""A cluster file: a device, how many, and what differs from the device's usual node."""
