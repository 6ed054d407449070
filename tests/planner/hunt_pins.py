"""A hunt for pins that beat the free plan: ``python -m tests.planner.hunt_pins --seconds 300``.

Pins are drawn over every key of the plan language, for several models on several clusters, some of which
leave little memory. Everything is drawn from the seed.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from autopar.capture.capture import Capture, capture
from autopar.capture.target import load_target
from autopar.errors import InfeasibleError, PlanError, UsageError
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.plan.decisions import MESH_AXES, Precision, Recompute, ScheduleName
from autopar.plan.pins import parse_sets
from autopar.planner.plan_lines import generalised
from autopar.planner.planner import make_plan
from autopar.planner.request import PlanRequest, PlanResult
from autopar.solve.candidates import divisors

GiB = 2**30


@dataclass(frozen=True, slots=True, eq=False)
class Quarry:
    """A model on some devices."""

    target: str
    args: Mapping[str, int]
    nodes: int
    devices_per_node: int
    global_batch: int
    memory_limit_bytes: int | None = None
    device: str = "a100-sxm-80gb"
    network_bytes_per_s: float | None = None

    @property
    def cluster(self) -> Cluster:
        cluster = make_cluster(load_device(self.device), self.nodes, self.devices_per_node)
        if self.network_bytes_per_s is None:
            return cluster
        return replace(cluster, network=replace(cluster.network, bytes_per_s=self.network_bytes_per_s))


def _gpt(n_layer: int, n_embd: int, n_head: int, seq: int, vocab: int) -> dict[str, int]:
    return {"n_layer": n_layer, "n_embd": n_embd, "n_head": n_head, "seq": seq, "vocab": vocab}


QUARRIES = {
    "small gpt": Quarry("examples/gpt.py", _gpt(4, 512, 8, 128, 4096), 1, 4, 32),
    "small gpt, two nodes": Quarry("examples/gpt.py", _gpt(4, 1024, 16, 256, 8192), 2, 4, 32),
    "wide gpt": Quarry("examples/gpt.py", _gpt(4, 4096, 32, 2048, 50304), 1, 4, 64),
    "tight gpt": Quarry("examples/gpt.py", _gpt(8, 2048, 16, 1024, 16384), 1, 8, 32, 8 * GiB),
    "tight gpt, two nodes": Quarry("examples/gpt.py", _gpt(6, 2048, 16, 1024, 16384), 2, 4, 32, 10 * GiB),
    "gpt, small nodes": Quarry("examples/gpt.py", _gpt(6, 1024, 16, 512, 8192), 4, 2, 48),
    "gpt, slow network": Quarry(
        "examples/gpt.py", _gpt(12, 768, 12, 512, 32000), 2, 4, 32, device="rtx4090-24gb"
    ),
    "resnet, slow network": Quarry("examples/resnet.py", {}, 2, 4, 64, device="rtx4090-24gb"),
    "perception": Quarry("examples/perception.py", {}, 1, 4, 64),
    "recommender": Quarry("examples/recommender.py", {}, 2, 2, 1024),
    "resnet": Quarry("examples/resnet.py", {}, 1, 4, 128),
}


@cache
def captured(quarry: Quarry) -> Capture:
    """The model in bf16."""
    return capture(load_target(quarry.target, quarry.args), torch.bfloat16)


@cache
def planned(quarry: Quarry, *sets: str) -> PlanResult:
    """The best plan under pins as ``--set`` writes them."""
    request = PlanRequest(
        captured(quarry).source,
        quarry.cluster,
        quarry.global_batch,
        constraints=parse_sets(sets),
        top=1,
        with_baselines=False,
        memory_limit_bytes=quarry.memory_limit_bytes,
        precision=Precision.BF16,
    )
    return make_plan(request, captured=captured(quarry))


def drawn_sets(quarry: Quarry, rng: random.Random) -> tuple[str, ...]:
    """One to four pins or bounds; often with some degrees of the free plan."""
    draw = _Draw(quarry, rng)
    ways: Sequence[Callable[[], Iterator[str]]] = (
        draw.degree,
        draw.degrees_of_the_free_plan,
        draw.order,
        draw.micro_batch,
        draw.zero,
        draw.shard_group,
        draw.schedule,
        draw.stage_sizes,
        draw.placement,
        draw.activation,
        draw.recompute,
        draw.offload,
    )
    chosen = rng.sample(ways, rng.choice((1, 1, 2, 2, 3, 4)))
    sets = [text for way in chosen for text in way()]
    if rng.random() < 0.35:
        sets = [*draw.degrees_of_the_free_plan(), *sets]
    return tuple({text.partition("=")[0]: text for text in sets}.values())


class _Draw:
    """Pins of one kind each."""

    def __init__(self, quarry: Quarry, rng: random.Random) -> None:
        graph = captured(quarry).at(2)
        self._rng, self._quarry = rng, quarry
        self._blocks = [block.name for block in graph.blocks]
        self._modules = sorted({name.rpartition(".")[0] for name in graph.parameters})
        self._degrees = divisors(quarry.cluster.num_devices)

    def degree(self) -> Iterator[str]:
        yield f"mesh.{self._rng.choice(MESH_AXES)}={self._number(self._rng.choice(self._degrees))}"

    def degrees_of_the_free_plan(self) -> Iterator[str]:
        mesh = planned(self._quarry).plan.mesh
        for axis in self._rng.sample(MESH_AXES, self._rng.choice((1, 2, 3))):
            yield f"mesh.{axis}={getattr(mesh, axis)}"

    def order(self) -> Iterator[str]:
        yield f"mesh.order=[{', '.join(self._rng.sample(MESH_AXES, 3))}]"

    def micro_batch(self) -> Iterator[str]:
        sizes = [size for size in divisors(self._quarry.global_batch) if size <= 64]
        yield f"batch.micro={self._number(self._rng.choice(sizes))}"

    def zero(self) -> Iterator[str]:
        yield f"zero={self._rng.choice((0, 1, 2, 3, '<=1', '<=2', '>=1', '>=2', '1-2'))}"

    def shard_group(self) -> Iterator[str]:
        yield f"shard_group={self._number(self._rng.choice(self._degrees))}"

    def schedule(self) -> Iterator[str]:
        if self._rng.random() < 0.7:
            yield f"pipeline.schedule={self._rng.choice(list(ScheduleName))}"
        else:
            yield f"pipeline.virtual={self._rng.choice((1, 2, 3, 5, '>=2', '<=2'))}"

    def stage_sizes(self) -> Iterator[str]:
        stage, sign = self._rng.choice(("0", "last", "0-1")), self._rng.choice(("<=", ">="))
        yield f"pipeline.blocks_per_stage={{{stage}: {sign}{self._rng.randint(1, 4)}}}"

    def placement(self) -> Iterator[str]:
        word = self._rng.choice(("column", "row", "vocab", "replicate"))
        yield f"tensor.{self._pattern(self._modules)}={word}"

    def activation(self) -> Iterator[str]:
        word = self._rng.choice(("replicate", "sequence", "batch"))
        yield f"activations.{self._pattern(self._blocks)}={word}"

    def recompute(self) -> Iterator[str]:
        words = [*map(str, Recompute), "[none, selective]", "[selective, full]"]
        yield f"recompute.{self._pattern(self._blocks)}={self._rng.choice(words)}"

    def offload(self) -> Iterator[str]:
        yield f"offload={self._rng.choice(('none', 'optimizer', 'activations', 'parameters'))}"

    def _number(self, number: int) -> str:
        """A number, or a bound that it keeps."""
        bounds = (f"<={number}", f">={number}", f"{max(number // 2, 1)}-{2 * number}")
        return str(number) if self._rng.random() < 0.6 else self._rng.choice(bounds)

    def _pattern(self, names: Sequence[str]) -> str:
        name, chance = self._rng.choice(names), self._rng.random()
        return generalised(name) if chance < 0.5 else name if chance < 0.9 else "*"


def excess(name: str, seed: int) -> tuple[tuple[str, ...], float | None]:
    """The pins of a seed, and by which part of the free plan's step theirs is longer; None if they leave no
    plan, or do not go together."""
    quarry = QUARRIES[name]
    sets = drawn_sets(quarry, random.Random(f"{name} {seed}"))
    try:
        pinned = planned(quarry, *sets)
    except (InfeasibleError, PlanError, UsageError):
        return sets, None
    return sets, pinned.prediction.step_time_s / planned(quarry).prediction.step_time_s - 1


def main() -> int:
    """Hunts for some time; the exit status says whether any pins beat a free plan."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300, help="in all (default: 300)")
    parser.add_argument("--start", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument("--only", default="", help="models whose name has this")
    args = parser.parse_args()
    names = [name for name in QUARRIES if args.only in name]
    num_better = 0
    for name in names:
        free, until_s, seed, num_planned = planned(QUARRIES[name]), time.monotonic(), args.start, 0
        until_s += args.seconds / len(names)
        while time.monotonic() < until_s:
            sets, longer = excess(name, seed)
            num_planned += longer is not None
            if longer is not None and longer < -1e-9:
                num_better += 1
                print(f"{name}, seed {seed}: {-longer:.3%} better with {' '.join(sets)}", flush=True)
            seed += 1
        print(f"{name}: {free.status}, {num_planned} planned of {seed - args.start} drawn", flush=True)
    print(f"{num_better} better than the free plan")
    return 1 if num_better else 0


if __name__ == "__main__":
    sys.exit(main())
