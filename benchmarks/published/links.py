"""All-reduces of the cost models against measured ones (all_reduce.csv: nccl-tests, by payload and group)."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from published.metrics import bias, mean_error

from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import make_cluster
from autopar.hardware.link import CollectiveKind

_FILE = Path(__file__).with_name("all_reduce.csv")


def link_errors() -> Iterator[str]:
    """One line per machine and group: payloads, mean error, bias."""
    groups: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    with _FILE.open(newline="") as file:
        for row in csv.DictReader(file):
            cluster = make_cluster(load_device(row["device"]), int(row["nodes"]))
            num_bytes, num_ranks = float(row["payload_bytes"]), int(row["gpus"])
            seconds = cluster.collective_s(CollectiveKind.ALL_REDUCE, num_bytes, num_ranks)
            groups[row["hardware"], row["nodes"], row["gpus"]].append((seconds, float(row["time_us"]) * 1e-6))
    for (hardware, nodes, ranks), times in groups.items():
        ours, measured = zip(*times, strict=True)
        yield (
            f"{hardware:44}{nodes:>2} nodes{ranks:>4} GPUs{len(times):>4} payloads"
            f"{mean_error(ours, measured):8.1%}{bias(ours, measured):+8.1%}"
        )
