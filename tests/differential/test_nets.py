"""Networks outside the grammar, under random plans on two and four ranks: equal to one process."""

from pathlib import Path

import pytest

from tests.differential.cases import TOLERANCE
from tests.differential.nets import NETS
from tests.runtime.world import Case, check, run_cases

# A spectral norm under BatchNorm is worse conditioned than the rest: 8e-10 in the Siamese network.
GRADIENT_TOLERANCE = 1e-8
SEEDS = {2: (0, 1), 4: (2, 3, 4)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_ranks", SEEDS)
def test_nets_under_random_plans_equal_one_process(num_ranks):
    model = str(Path(__file__).with_name("nets.py"))
    cases = [
        Case(
            f"{net}-{seed}",
            "tests.differential.cases:compare",
            model=model,
            args={"net": net},
            micro_batch=4,
            extra={"seed": f"{net} {seed}", "plan": "", "num_ranks": num_ranks},
        )
        for net in NETS
        for seed in SEEDS[num_ranks]
    ]
    wrong = {}
    for name, results in run_cases(num_ranks, cases).items():
        report = check(results, num_ranks)[0]["report"]
        gradient = report["worst_gradient_error"]
        is_far = gradient is None or gradient > GRADIENT_TOLERANCE
        if report["missing"] or is_far or report["worst_loss_error"] > TOLERANCE:
            wrong[name] = (report, results[0]["plan"])
    assert not wrong
