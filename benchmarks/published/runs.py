"""Published training runs, one row each: what was trained, where, under which plan, and how long a step
took."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

_FILE = Path(__file__).with_name("runs.csv")


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run.

    Attributes:
        source: the publication.
        hardware: as the publication names it.
        internode_gbit_per_gpu: network cards of a node, Gbit/s per device; None: not stated.
        tensor: degree of tensor parallelism; likewise ``pipeline``, ``data``, ``context``.
        virtual: stages per pipeline rank.
        recompute: words of the source.
        step_s: measured, or derived from the throughput that the source prints.
        peak_memory_bytes: of a device; None: not printed.
        era: version of the software, as the source names it.
    """

    id: str
    source: str
    source_ref: str
    model: str
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    ffn: int
    gated: bool
    seq: int
    vocab: int
    hardware: str
    num_devices: int
    devices_per_node: int
    internode_gbit_per_gpu: float | None
    tensor: int
    pipeline: int
    data: int
    context: int
    virtual: int
    global_batch: int
    micro_batch: int
    recompute: str
    sequence_parallel: bool
    zero: str
    schedule: str
    precision: str
    flash: bool
    framework: str
    step_s: float
    peak_memory_bytes: float | None
    notes: str

    @property
    def sweep(self) -> tuple[str, ...]:
        """Rows with equal sweeps train one model with one batch on the same devices, under other plans."""
        return (
            self.source,
            self.model,
            str(self.seq),
            self.hardware,
            str(self.num_devices),
            str(self.global_batch),
            self.precision,
        )


def read_runs(path: Path = _FILE) -> list[Run]:
    """All rows of the file, in its order."""
    with path.open(newline="") as file:
        return [_run(row) for row in csv.DictReader(file)]


def _run(row: dict[str, str]) -> Run:
    def number(key: str) -> int:
        return int(row[key])

    network, memory = row["internode_gbit_per_gpu"], row["peak_mem"]
    return Run(
        id=row["id"],
        source=row["source"],
        source_ref=row["source_ref"],
        model=row["model"],
        family=row["family"],
        layers=number("layers"),
        hidden=number("hidden"),
        heads=number("heads"),
        kv_heads=number("kv_heads"),
        ffn=number("ffn"),
        gated=row["gated_mlp"] == "1",
        seq=number("seq"),
        vocab=number("vocab"),
        hardware=row["hardware"],
        num_devices=number("gpus"),
        devices_per_node=number("gpus_per_node"),
        internode_gbit_per_gpu=float(network) if network else None,
        tensor=number("tp"),
        pipeline=number("pp"),
        data=number("dp"),
        context=number("cp"),
        virtual=number("vp"),
        global_batch=number("gbs"),
        micro_batch=number("mbs"),
        recompute=row["recompute"],
        sequence_parallel=row["seq_parallel"] == "1",
        zero=row["zero"],
        schedule=row["schedule"],
        precision=row["precision"],
        flash=row["flash_attn"] == "1",
        framework=row["framework"],
        step_s=float(row["step_time_s"]),
        peak_memory_bytes=float(memory) * 2**30 if memory else None,
        notes=row["notes"],
    )
