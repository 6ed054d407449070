"""What a training script sees of a parallel model, on two gloo processes."""

import pytest

from tests.runtime.expect import assert_clipped, assert_close, assert_refused
from tests.runtime.plans import GPT_TENSOR
from tests.runtime.world import Case, check, run_cases

MESHES = {
    "pipeline": {"pipeline": 2},
    "zero0": {"data": 2},
    "zero3": {"data": 2, "zero": 3},
    "tensor": {"tensor": 2, "lines": GPT_TENSOR},
}
CASES = [
    *(Case(f"clip-{name}", "clip", options=options) for name, options in MESHES.items()),
    *(Case(f"surface-{name}", "surface", options=options) for name, options in MESHES.items()),
    *(
        Case(
            f"half-{name}",
            "precision_bodies:half",
            dtype="bfloat16",
            options={**options, "precision": "bf16"},
        )
        for name, options in MESHES.items()
    ),
    *(
        Case(
            f"fp16-{name}",
            "precision_bodies:half",
            dtype="float16",
            options={**MESHES[name], "precision": "fp16"},
        )
        for name in ("pipeline", "zero3")
    ),
    Case(
        "overflow",
        "precision_bodies:overflow",
        dtype="float16",
        options={**MESHES["pipeline"], "precision": "fp16"},
    ),
    *(
        Case(
            f"overflow-between-{name}",
            "precision_bodies:overflow_between",
            dtype="float16",
            options={**options, "precision": "fp16"},
        )
        for name, options in {
            "pipeline": MESHES["pipeline"],
            "optimizer-away": {**MESHES["zero3"], "offload": "optimizer"},
        }.items()
    ),
    Case("exact", "checkpoint_bodies:exact", options=MESHES["tensor"]),
    Case(
        "exact-batchnorm",
        "checkpoint_bodies:exact",
        model="perception",
        options=MESHES["pipeline"],
    ),
    Case("surface-bare-stage", "surface", options={"pipeline": 2, "cuts": [7]}),
    Case("clip-bare-stage", "clip", options={"pipeline": 2, "cuts": [7]}),
    Case("surface-frozen-stage", "surface", args={"tied": False, "num_frozen": 2}, options={"pipeline": 2}),
    *(Case(f"muon-{name}", "muon", options=options) for name, options in MESHES.items()),
    Case("misuse", "misuse", options=MESHES["pipeline"]),
    Case("differing", "differing_plans", options=MESHES["pipeline"]),
]


@pytest.fixture(scope="module")
def found():
    return run_cases(2, CASES)


@pytest.mark.parametrize("mesh", MESHES)
def test_clip_grad_norm_equals_one_process(found, mesh):
    assert_clipped(found[f"clip-{mesh}"], 2)


@pytest.mark.parametrize("mesh", MESHES)
def test_step_gives_the_same_loss_on_every_rank(found, mesh):
    results = check(found[f"surface-{mesh}"], 2)
    assert results[0]["loss"] == results[1]["loss"]
    assert results[0]["loss_error"] < 1e-12


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_add_up_until_zeroed(found, mesh):
    assert all(result["accumulated"] < 1e-12 for result in check(found[f"surface-{mesh}"], 2))


@pytest.mark.parametrize("mesh", MESHES)
def test_full_state_dict_loads_into_the_plain_model(found, mesh):
    assert all(result["state"] == 0.0 for result in check(found[f"surface-{mesh}"], 2))


def test_named_parameters_are_the_models_own_names_on_their_stages(found):
    first, last = (result["names"] for result in check(found["surface-pipeline"], 2))
    assert "wte.weight" in first and "wte.weight" in last  # tied to the head on the last stage
    assert set(first) & set(last) == {"wte.weight"}
    assert "blocks.0.qkv.weight" in first and "blocks.2.out.bias" in last and "head.weight" not in last


def test_a_stage_without_parameters_trains_along(found):
    results = check(found["surface-bare-stage"], 2)
    assert results[1]["names"] == ["no_parameters"] and results[1]["num_parameters"] == 1
    assert all(result["state"] == 0.0 and result["accumulated"] < 1e-12 for result in results)
    assert all(result["parameters"] < 1e-9 for result in check(found["clip-bare-stage"], 2))


def test_a_frozen_stage_gives_an_optimizer_something_to_hold(found):
    frozen, training = check(found["surface-frozen-stage"], 2)
    assert "blocks.1.qkv.weight" in frozen["names"] and "blocks.2.qkv.weight" in training["names"]
    assert frozen["trained"] == ["no_parameters"] and "no_parameters" not in training["names"]
    assert frozen["accumulated"] < 1e-12 and frozen["state"] == 0.0


@pytest.mark.parametrize("mesh", MESHES)
def test_a_full_state_dict_stays_as_it_was(found, mesh):
    assert all(result["kept"] for result in check(found[f"clip-{mesh}"], 2))


def test_data_rank_follows_the_mesh(found):
    assert [result["data"] for result in check(found["surface-zero3"], 2)] == [(0, 2), (1, 2)]
    assert [result["data"] for result in check(found["surface-tensor"], 2)] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("mesh", MESHES)
def test_bf16_keeps_parameters_and_gradients_in_float32(found, mesh):
    assert_close(found[f"half-{mesh}"], 2)


@pytest.mark.parametrize("mesh", ["pipeline", "zero3"])
def test_fp16_gradients_are_scaled_and_unscaled(found, mesh):
    for result in check(found[f"fp16-{mesh}"], 2):
        assert result["dtypes"] == ["torch.float32"]
        assert result["loss"] < 0.01 and result["gradient"] < 0.01
        assert result["falls"] > 0


def test_an_fp16_step_that_overflows_changes_nothing(found):
    for result in check(found["overflow"], 2):
        assert result == {"factors": [2.0**15, 2.0**14], "gradients": 0, "changed": 0.0}


@pytest.mark.parametrize("name", ["pipeline", "optimizer-away"])
def test_an_fp16_step_that_overflows_takes_the_others_of_its_update_along(found, name):
    for result in check(found[f"overflow-between-{name}"], 2):
        assert result == {"gradients": [True, False, False, True], "changed": 0.0, "factor": 2.0**14}


@pytest.mark.parametrize("case", ["exact", "exact-batchnorm"])
def test_exact_initialisation_equals_manual_seed(found, case):
    assert check(found[case], 2) == [True, True]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("missing", "the batch lacks 'tokens'; it must hold: 'tokens' (4, 8), 'labels' (4, 8)"),
        ("unknown", "the model does not read; did you mean 'tokens'?"),
        ("size", "has shape (1, 8); this data rank's share of a step is 2 micro-batches of 2 samples"),
        ("dtype", "is torch.float32; the model was captured with torch.int64"),
        ("list", "is a list, not a tensor"),
        ("forward", "call it as model(**batch)"),
        ("state", "call save(path) for a checkpoint"),
        ("whole", "give it to parallelize(..., init=state_dict), or call load(path)"),
        ("half", "half() would change the precision of a model under a plan: write 'precision: bf16'"),
        ("dtype of all", "to(torch.float16) would change the precision"),
        ("device", "the model is on cpu, where its rank runs, and stays there: do not move it to meta"),
        (
            "memory format",
            "to(memory_format=torch.channels_last): the parameters of a model under a plan lie as",
        ),
        ("copy", "can be neither copied nor pickled: call save(path) for a checkpoint; for a moving average"),
        ("wrapped", "leave out DistributedDataParallel(model), and train with model.step(batch)"),
        ("Adafactor", "Adafactor looks at rows and columns, and 'blocks."),
        ("LBFGS", "LBFGS looks at all parameters at once, of which a rank of this pipeline of 2 holds some"),
        (
            "sorted by dims",
            "qkv.bias', of shape (48,), among matrices: it is stored as (3, 16) under",
        ),
        ("frozen", "was frozen after parallelize(), which its programs do not follow; set requires_grad in"),
        ("no dict", "step() takes a dict of tensors, not a list: give 'tokens', 'labels' by name"),
        ("no dict to evaluate", "eval_step() takes a dict of tensors, not a list"),
        ("no_grad", "step() trains; call it outside torch.no_grad() and torch.inference_mode(), or use eval"),
        ("inference_mode", "step() trains; call it outside torch.no_grad() and torch.inference_mode()"),
        ("eval", "call model.train() first"),
        ("stale", "AdamW was stepped, but holds none of the parallel model's parameters"),
    ],
)
def test_misuse_says_what_to_do(found, mistake, message):
    assert_refused(found["misuse"], 2, mistake, message)


def test_a_closed_model_says_so(found):
    for messages in check(found["misuse"], 2):
        assert messages["close twice"] == "no error"
        told = {key.removeprefix("closed "): value for key, value in messages.items() if key[:7] == "closed "}
        assert len(told) == 6
        for call, message in told.items():
            assert message.startswith(f"UsageError: {call}")
            assert message.endswith(": the model is closed; call close() after everything else")


@pytest.mark.parametrize("name", MESHES)
def test_muon_sees_whole_matrices(found, name):
    for errors in check(found[f"muon-{name}"], 2):
        assert len(errors) > 4
        assert max(errors.values()) < 0.1  # of rounding to bfloat16; of halves made orthogonal, 0.3 to 0.5


def test_a_move_to_where_the_model_is_changes_nothing(found):
    assert [messages["stays"] for messages in check(found["misuse"], 2)] == ["True", "True"]


def test_ranks_with_different_plans_are_named(found):
    for message in check(found["differing"], 2):
        assert message.startswith("DistributedError: plan of rank 1 differ from those of rank 0")
