"""Seeds of random operators: by block and by micro-batch of the whole step, wherever it is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autopar.runtime.initialise import hash_seed
from autopar.runtime.rank_stages import RankStages

Seeds = Mapping[int, Sequence[tuple[int, ...]]]
"""For each stage and micro-batch, one seed per block."""


def block_seeds(
    stages: RankStages, seed: int, step: int, data_rank: int, num_micro_batches: int, indices: range
) -> Seeds:
    """Seeds of the micro-batches ``indices`` of a data rank in a step; 0 where nothing is random.

    Args:
        seed: of the run.
        num_micro_batches: of a data rank in a step of the plan; those beyond are numbered by themselves.
    """

    def of_block(index: int, block: int) -> int:
        place: tuple[object, ...] = (data_rank * num_micro_batches + index,)
        if index >= num_micro_batches:
            place = "beyond", data_rank, index
        return hash_seed(seed, "random operators", step, *place, block)

    return {
        stage: [
            tuple(of_block(index, x.block.index) if x.is_random else 0 for x in module.programs)
            for index in indices
        ]
        for stage, module in stages.items()
    }
