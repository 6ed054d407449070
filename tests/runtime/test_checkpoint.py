"""What one plan saves, another loads, and training goes on as if it had never stopped."""

import pytest

from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, run_cases

# All of eight samples a step.
PLANS = {
    "pipeline4": {"pipeline": 4, "num_micro_batches": 4},
    "interleaved": {"schedule": "interleaved", "virtual": 2, "pipeline": 4, "num_micro_batches": 4},
    "zbv-zero1": {"schedule": "zbv", "virtual": 2, "pipeline": 2, "data": 2, "zero": 1},
    "data4": {"data": 4, "num_micro_batches": 1},
    "zero3": {"data": 4, "num_micro_batches": 1, "zero": 3},
    "shard-groups": {"data": 4, "num_micro_batches": 1, "zero": 3, "shard_group": 2},
    "tensor4": {"tensor": 4, "lines": GPT_TENSOR, "num_micro_batches": 4},
    "data-tensor-zero3": {"data": 2, "tensor": 2, "zero": 3, "lines": GPT_TENSOR},
    "reordered": {"pipeline": 2, "data": 2, "zero": 1, "order": "data tensor pipeline"},
    "tensor-slowest": {
        "pipeline": 2,
        "tensor": 2,
        "lines": GPT_TENSOR,
        "order": "tensor data pipeline",
        "num_micro_batches": 4,
    },
    "optimizer-away": {"data": 2, "tensor": 2, "zero": 2, "lines": GPT_TENSOR, "offload": "optimizer"},
    "parameters-away": {
        "data": 4,
        "num_micro_batches": 1,
        "zero": 3,
        "offload": "parameters,activations",
    },
}
ON_TWO = {
    "pipeline2": {"pipeline": 2, "num_micro_batches": 4},
    "data2-zero2": {"data": 2, "zero": 2},
}
# So that every rank has something for both optimisers.
FOUR_LAYERS = {"n_layer": 4}
OF_TWO_OPTIMIZERS = ("zbv-zero1", "shard-groups")
WAYS = [
    ("zero3", "pipeline4"),
    ("pipeline4", "data-tensor-zero3"),
    ("zbv-zero1", "interleaved"),
    ("optimizer-away", "shard-groups"),
    ("data-tensor-zero3", "pipeline2"),
]
MORE_WAYS = [
    ("tensor4", "data4"),
    ("data4", "tensor-slowest"),
    ("interleaved", "pipeline4"),
    ("shard-groups", "reordered"),
    ("parameters-away", "optimizer-away"),
    ("data-tensor-zero3", "parameters-away"),
    ("interleaved", "data2-zero2"),
]


def load_case(folder, saved, loaded):
    extra = {"path": str(folder / saved), "lr": 1e-2, "two": saved in OF_TWO_OPTIMIZERS}
    return Case(
        f"{saved}-{loaded}",
        "checkpoint_bodies:load",
        args=FOUR_LAYERS,
        options={**PLANS, **ON_TWO}[loaded],
        extra=extra,
    )


def run_ways(folder, ways, others=()):
    """All savings, then all loadings."""
    savings = [
        Case(
            f"save-{saved}",
            "checkpoint_bodies:save",
            args=FOUR_LAYERS,
            options=PLANS[saved],
            extra={"path": str(folder / saved), "lr": 1e-2, "two": saved in OF_TWO_OPTIMIZERS},
        )
        for saved in dict.fromkeys(saved for saved, _ in ways)
    ]
    on_four = [load_case(folder, *way) for way in ways if way[1] in PLANS]
    on_two = [load_case(folder, *way) for way in ways if way[1] in ON_TWO]
    return run_cases(4, [*savings, *on_four, *others]) | run_cases(2, on_two)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    wrong = Case(
        "errors",
        "checkpoint_bodies:load_errors",
        args={"n_layer": 5},
        options={"pipeline": 4},
        extra={"path": str(folder / "pipeline4"), "lr": 1e-2},
    )
    return run_ways(folder, WAYS, [wrong])


@pytest.fixture(scope="module")
def more_found(tmp_path_factory):
    return run_ways(tmp_path_factory.mktemp("checkpoints"), MORE_WAYS)


def assert_goes_on(found, saved, loaded):
    check(found[f"save-{saved}"], 4)
    for result in check(found[f"{saved}-{loaded}"], 2 if loaded in ON_TWO else 4):
        assert result["steps_done"] == 2
        assert result["num_losses"] == 5
        assert result["loss"] < 1e-9
        # Adam's update divides by the square root of gradients near zero: rounding shows up enlarged.
        assert result["parameters"] < 1e-8


@pytest.mark.parametrize(("saved", "loaded"), WAYS)
def test_another_plan_goes_on_from_a_checkpoint(found, saved, loaded):
    assert_goes_on(found, saved, loaded)


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "loaded"), MORE_WAYS)
def test_another_plan_still_goes_on_from_a_checkpoint(more_found, saved, loaded):
    assert_goes_on(more_found, saved, loaded)


def test_what_does_not_fit_is_refused_on_every_rank(found):
    for nowhere, other_model, stale, twice in check(found["errors"], 4):
        assert nowhere.startswith("UsageError: there is no checkpoint in '/nowhere/at/all'; give the folder")
        assert "has no 'model.blocks.4.ln_1.weight'; did you mean" in other_model
        assert "are not parameters of the parallel model" in stale
        assert "two optimisers hold '" in twice


def test_state_of_another_class_of_optimiser_is_refused(tmp_path):
    other = Case(
        "other",
        "checkpoint_bodies:other_optimizers",
        options={"data": 2, "zero": 1},
        extra={"path": str(tmp_path / "adamw")},
    )
    for result in check(run_cases(2, [other])["other"], 2):
        for name, message in zip(("SGD", "Adam"), result["messages"], strict=True):
            assert message.startswith(f"UsageError: the checkpoint '{tmp_path / 'adamw'}' holds the state of")
            assert f"state of AdamW, and {name} was given" in message
            assert message.endswith("give AdamW, or load it without an optimiser")
        assert result["untouched"] and result["rates"] == [1e-2, 1e-2]


@pytest.mark.parametrize("options", [{"pipeline": 2}, {"data": 2, "zero": 3, "offload": "optimizer"}])
def test_an_overflow_ends_with_the_parameters_that_made_it(tmp_path, options):
    again = Case(
        "again",
        "checkpoint_bodies:overflow_then_load",
        dtype="float16",
        options={**options, "precision": "fp16"},
        extra={"path": str(tmp_path / "before")},
    )
    assert check(run_cases(2, [again])["again"], 2) == [[False, True], [False, True]]
