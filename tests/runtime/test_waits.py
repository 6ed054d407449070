"""Every wait of a run ends, and names the rank that is waited for; a full disk is no reason to wait."""

import pytest

from tests.runtime.world import Case, check, run_cases

TIMEOUT_S = 3.0
LATEST_S = TIMEOUT_S + 20.0
MESHES = {
    "pipeline": {"pipeline": 2},
    "data": {"data": 2},
    "zero": {"data": 2, "zero": 2},
    "parameters-away": {"data": 2, "zero": 3, "offload": "parameters"},
}
WAYS = [
    ("building", "pipeline"),
    ("step", "pipeline"),
    ("step", "parameters-away"),
    ("save", "data"),
    ("load", "zero"),
    ("full_state_dict", "pipeline"),
    ("whole_parameters", "pipeline"),
]


def waiting(how, mesh, folder):
    extra = {"how": how, "folder": str(folder), "timeout_s": TIMEOUT_S}
    case = Case(how, "waits:stand_still", options=MESHES[mesh], extra=extra)
    return run_cases(2, [case])[how]  # in a process group whose own time-out is longer


@pytest.mark.slow
@pytest.mark.parametrize(("how", "mesh"), WAYS)
def test_a_rank_that_stands_still_is_named(how, mesh, tmp_path):
    left, still = waiting(how, mesh, tmp_path)
    assert left is not None and left["kind"] == "DistributedError", (left, still)
    assert "rank 1 is alive but stands still in " in left["message"]
    assert left["after_s"] < LATEST_S


@pytest.mark.slow
def test_a_rank_that_never_calls_parallelize_is_named(tmp_path):
    left, _ = waiting("parallelize", "data", tmp_path)
    assert left["kind"] == "DistributedError"
    assert "not all of them came" in left["message"] and "Ranks 1 failed to pass" in left["message"]
    assert left["after_s"] < LATEST_S


def test_a_full_disk_on_one_rank_is_told_on_all_and_costs_nothing(tmp_path):
    case = Case("full", "waits:full_disk", options=MESHES["data"], extra={"folder": str(tmp_path)})
    for message, left, steps in check(run_cases(2, [case])["full"], 2):
        assert message.startswith("DistributedError: rank 1 could not write the checkpoint '")
        assert "File too large" in message
        assert left == ["checkpoint"]
        assert steps == [1, 2]


@pytest.mark.parametrize(
    ("how", "zero"), [("full_state_dict", 1), ("save", 1), ("eval_step", 0), ("clip_grad_norm_", 0)]
)
def test_a_call_on_rank_0_alone_is_told_as_such(how, zero, tmp_path):
    extra = {"how": how, "folder": str(tmp_path), "timeout_s": TIMEOUT_S}
    case = Case(how, "waits:differ", options={"data": 2, "zero": zero}, extra=extra)
    first, _ = run_cases(2, [case])[how]
    assert first is not None and f"ranks differ: 0 in {how}" in first
    assert "1 in step 1; every rank makes the same calls in the same order" in first


@pytest.mark.parametrize("how", ["data", "pipeline"])
def test_evaluation_of_more_samples_on_some_ranks_is_refused_on_all(how):
    case = Case(how, "waits:uneven_evaluation", options=MESHES[how])
    for rank, (message, loss) in enumerate(check(run_cases(2, [case])[how], 2)):
        assert message.startswith(
            f"UsageError: eval_step(): this rank gives {rank + 1} micro-batches, and the"
        )
        assert "1.50 on average" in message
        assert loss > 0
