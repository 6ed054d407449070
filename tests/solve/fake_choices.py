"""Made-up chains for the search: random costs, memories, clusters and pins, small enough to enumerate."""

import random
from dataclasses import dataclass, field, replace

from autopar.cost.choice import BlockChoice, ParameterShare
from autopar.cost.layout import SharedParameter
from autopar.hardware.catalog import load_device
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.hardware.tables import SizeTable
from autopar.plan.decisions import Mesh, Precision, Recompute, ScheduleName
from autopar.solve.candidate import ChoiceTable, Job
from autopar.solve.candidates import OuterPins, Space

MILLION = 1_000_000


@dataclass
class FakeKind:
    """One kind of block: seconds a sample, elements, bytes a sample."""

    seconds: float
    backward: float
    elements: int
    saved: int
    transient: int
    output: int
    recompute: bool
    tensor_options: int
    update_weight: float = 1.0


@dataclass
class FakeChoices:
    """Implements ``Choices``; every table is remembered."""

    kinds: list[FakeKind]
    blocks: tuple[int, ...]
    tied: tuple[int, ...]
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    @property
    def trainable_elements(self) -> int:
        tied = sum(self.kinds[self.blocks[b]].elements // 2 for b in self.tied[1:])
        return sum(self.kinds[kind].elements for kind in self.blocks) - tied

    def floor_s(self, tensor: int, micro_batch: int) -> float:
        table = self._table(tensor, micro_batch, 1)
        least = [min(c.forward_s + c.backward_s for c in kind) for kind in table.kinds]
        return 0.7 * sum(least[kind] for kind in table.blocks)

    def tables(
        self, tensor: int, micro_batch: int, tensor_stride: int = 1, *, thorough: bool = False
    ) -> tuple[ChoiceTable, ...]:
        self.asked.append((tensor, micro_batch, tensor_stride))
        return (self._table(tensor, micro_batch, tensor_stride),)

    def _table(self, tensor: int, micro_batch: int, stride: int) -> ChoiceTable:
        kinds = tuple(
            tuple(self._choices(index, tensor, micro_batch, stride)) for index in range(len(self.kinds))
        )
        shared: tuple[SharedParameter, ...] = ()
        if self.tied:
            elements = min(self.kinds[self.blocks[b]].elements // 2 for b in self.tied) // tensor
            shared = (SharedParameter("tied", self.tied, elements),)
        return ChoiceTable(kinds, self.blocks, shared, (0,) * len(self.blocks))

    def _choices(self, index: int, tensor: int, micro_batch: int, stride: int) -> list[BlockChoice]:
        kind, found = self.kinds[index], []
        words = [("replicate", "replicate")]
        if tensor > 1 and kind.tensor_options > 1:
            words += [("replicate", "sequence"), ("sequence", "replicate")][: kind.tensor_options - 1]
            if micro_batch % tensor == 0:
                words.append(("replicate", "replicate"))  # the batch is divided, and so only if it divides
        for i, (source, target) in enumerate(words):
            of_batch = i > 0 and source == target
            for full in (False, True) if kind.recompute else (False,):
                share = tensor if i != 1 or of_batch else 1
                slower = 1.0 if of_batch or tensor == 1 else 1.3
                forward = slower * kind.seconds * micro_batch / share + 2e-4
                backward = forward * kind.backward
                elements = kind.elements // (1 if of_batch else share)
                comm = 0.0 if of_batch else 1e-4 * (tensor - 1) * (i + 1) * stride**0.5
                found.append(
                    BlockChoice(
                        class_key=str(index),
                        tensor_degree=tensor,
                        micro_batch=micro_batch,
                        input_word=source,
                        output_word=target,
                        recompute=Recompute.FULL if full else Recompute.NONE,
                        parameters=(ParameterShare("w", "replicate", elements, True),),
                        overrides={},
                        forward_compute_s=forward,
                        forward_comm_s=comm,
                        backward_compute_s=backward + (forward if full else 0.0),
                        backward_comm_s=comm * (2 if full else 1),
                        saved_bytes=(kind.saved // 8 if full else kind.saved) * micro_batch // tensor,
                        transient_bytes=kind.transient * micro_batch // tensor + (kind.saved if full else 0),
                        output_bytes=kind.output * micro_batch,
                        model_flops=1e9,
                        backward_weight_s=forward * min(1.0, kind.backward / 2),
                        update_weight=kind.update_weight,
                    )
                )
        return found


@dataclass
class FakeCase:
    """A random job with its space."""

    choices: FakeChoices
    job: Job
    space: Space
    tensor_degrees: tuple[int, ...]


def random_case(rng: random.Random, *, pins: OuterPins | None = None) -> FakeCase:
    """A case whose whole space takes a fraction of a second to go through."""
    kinds = [
        FakeKind(
            rng.choice((1e-3, 2e-3, 5e-3)) * rng.uniform(0.8, 1.2),
            rng.choice((1.0, 2.0, 2.5)),
            rng.choice((1, 5, 20, 60)) * MILLION,
            rng.choice((10, 50, 200)) * MILLION,
            rng.choice((1, 20)) * MILLION,
            rng.choice((1, 4, 40)) * MILLION,
            rng.random() < 0.6,
            rng.choice((1, 1, 2, 3)),
        )
        for _ in range(rng.randint(1, 3))
    ]
    num_blocks = rng.randint(1, 4)
    blocks = tuple(sorted(rng.randrange(len(kinds)) for _ in range(num_blocks)))
    tied = tuple(sorted(rng.sample(range(num_blocks), 2))) if num_blocks > 2 and rng.random() < 0.25 else ()
    nodes, per_node = rng.choice(((1, 1), (1, 2), (1, 2), (1, 4), (2, 1), (2, 2)))
    job = Job(
        fake_cluster(rng, nodes, per_node),
        Precision.BF16,
        rng.choice(("adamw", "sgd")),
        rng.choice((2, 4, 4, 8)) if nodes * per_node < 4 else 4,
        rng.choice((1_600, 2_000, 2_600, 4_000, 40_000)) * MILLION,
    )
    pins = pins or random_pins(rng, num_blocks)
    further = random.Random(repr(kinds))
    if further.random() < 0.3:
        job = replace(job, cluster=with_shared_cores(job.cluster))
    if further.random() < 0.5:
        for kind in kinds:
            kind.update_weight = further.choice((1.0, 1.5, 4.0))
    if further.random() < 0.3:
        job = replace(job, global_batch=further.choice((6, 12)) if nodes * per_node < 4 else 12)
    return FakeCase(
        FakeChoices(kinds, blocks, tied), job, Space(pins, num_blocks, nodes, per_node, _allows), (1, 2, 4)
    )


def fake_cluster(rng: random.Random, nodes: int, per_node: int) -> Cluster:
    """Of A100s with other memory and host links."""
    device = load_device("a100-sxm-80gb")
    host = replace(device.host, memory_bytes=rng.choice((2_000, 100_000)) * MILLION)
    device = replace(device, framework_reserved_bytes=1_000 * MILLION, host=host)
    return make_cluster(device, nodes, per_node)


def with_shared_cores(cluster: Cluster) -> Cluster:
    """Two devices to a core, on which messages take the longer the busier it is."""
    busy, alone = SizeTable(((1e3, 1e6), (1e6, 4e8), (1e8, 4e9))), SizeTable(((1e3, 4e6), (1e8, 1e10)))
    return replace(
        cluster,
        device=replace(cluster.device, time_share=2.0),
        intra_node=replace(cluster.intra_node, messages=busy, messages_alone=alone),
    )


def random_pins(rng: random.Random, num_blocks: int) -> OuterPins:
    """Some decisions fixed, so that the rest can be enumerated."""
    return OuterPins(
        Mesh(),
        zero=rng.choice((None, None, 0, 1, 2, 3)),
        schedule=rng.choice(
            (
                None,
                ScheduleName.ONE_F_ONE_B,
                ScheduleName.ONE_F_ONE_B,
                ScheduleName.ZERO_BUBBLE,
                ScheduleName.INTERLEAVED,
                ScheduleName.ZBV,
                ScheduleName.GPIPE,
            )
        ),
        offload=rng.choice((None, (), (), (), ("optimizer",), ("activations",))),
    )


def _allows(schedule: ScheduleName, virtual: int, zero: int, offload: tuple[str, ...]) -> bool:
    return zero < 3 or schedule not in (ScheduleName.ZERO_BUBBLE, ScheduleName.ZBV)
