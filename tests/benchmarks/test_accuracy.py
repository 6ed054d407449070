"""Metrics by hand-made cases; every published run is expressed or has a reason; a few predictions hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from published.express import express, pinned_plan, reason_not_expressed, stages_of
from published.metrics import bias, mean_error, pick_regret, scalar, spearman
from published.predict import Predicted, Predictor
from published.runs import read_runs
from published.summary import summarise, sweeps_of
from published.trivial import trivial_step_s

RUNS = {run.id: run for run in read_runs()}


def test_mean_error_and_bias() -> None:
    assert mean_error([1.1, 1.8], [1.0, 2.0]) == pytest.approx(0.1)
    assert bias([1.1, 1.8], [1.0, 2.0]) == pytest.approx(0.0)


def test_scalar_is_the_median_ratio() -> None:
    assert scalar([1.0, 1.0, 1.0], [2.0, 3.0, 100.0]) == 3.0


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3], [5, 5, 5], 0.0),
        # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 x 5).
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / (4.5 * 5) ** 0.5),
        # Without ties: 1 - 6 x (1 + 1 + 0) / (3 x 8).
        ([1, 2, 3], [2, 1, 3], 0.5),
    ],
)
def test_spearman(first: list[float], second: list[float], expected: float) -> None:
    assert spearman(first, second) == pytest.approx(expected)


def test_pick_regret_is_what_the_pick_loses() -> None:
    assert pick_regret([3.0, 1.0, 2.0], [9.0, 6.0, 5.0]) == pytest.approx(0.2)
    assert pick_regret([1.0, 2.0], [5.0, 6.0]) == 0.0


def test_every_run_is_expressed_or_has_a_reason() -> None:
    assert len(RUNS) == 1644
    reasons = {run.id: reason_not_expressed(run) for run in RUNS.values()}
    for run in RUNS.values():
        if reasons[run.id] is None:
            assert express(run).cluster.num_devices == run.num_devices
            assert run.tensor * run.pipeline * run.data == run.num_devices
            assert run.global_batch % (run.micro_batch * run.data) == 0
    assert sum(reason is None for reason in reasons.values()) == 1612
    assert {reason.split(":")[0] for reason in reasons.values() if reason} == {
        "fp8 products",
        "asynchronous tensor parallelism",
    }
    context = replace(RUNS["tt_02_8B_g8"], context=2)
    assert reason_not_expressed(context) == "context parallelism: the mesh has no such axis"


def test_the_loss_is_compiled_where_the_source_did_so() -> None:
    compiled = {
        name: express(RUNS[name]).arguments["compiled_loss"] for name in ("tt_02_8B_g8", "tt_25_8B_g64")
    }
    assert compiled == {"tt_02_8B_g8": False, "tt_25_8B_g64": True}


def test_networks_are_those_that_the_sources_state() -> None:
    stated = express(RUNS["vtrain_single_0000"]).cluster.network.bytes_per_s
    assert stated == 100e9 / 8
    assert express(RUNS["sc21_t1_1T"]).cluster.network.bytes_per_s == 200e9 / 8


def test_stages_are_even_with_the_embedding_first_and_the_head_last() -> None:
    blocks = ["wte", "wpe", *(f"blocks.{i}" for i in range(4)), "ln_f", "lm_head", "loss"]
    assert stages_of(blocks, 2) == (
        ("wte", "wpe", "blocks.0", "blocks.1"),
        ("blocks.2", "blocks.3", "ln_f", "lm_head", "loss"),
    )
    assert stages_of(blocks, 1) == (tuple(blocks),)


def test_the_trivial_model_is_the_hardware_flops_at_half_of_the_peak() -> None:
    # Narayanan et al. 2021, eq. 3: 96 B s l h^2 (1 + s / 6h + V / 16lh), all of it on 32 devices.
    run = RUNS["sc21_t1_1.7B"]
    h, s = run.hidden, run.seq
    flops = 96 * run.global_batch * s * run.layers * h**2
    flops *= 1 + s / (6 * h) + run.vocab / (16 * run.layers * h)
    assert trivial_step_s(run, 312e12) == pytest.approx(flops / (32 * 312e12 * 0.5))
    piped = replace(run, pipeline=2, data=16)  # 2 micro-batches a rank
    assert trivial_step_s(piped, 312e12) == pytest.approx(1.5 * trivial_step_s(run, 312e12))


# Bands of the step time; the aims per source are those of the whole set.
@pytest.mark.parametrize(
    ("run_id", "band"),
    [
        ("kort22_t5_22B_full", 0.1),
        ("kort22_t5_22B_selsp", 0.1),
        ("sc21_t1_18B", 0.12),
        ("mpt_a100_80gb_7b_s1024_g8_b1024_amp_bf16_ac", 0.12),
        ("tt_36_L2-13B_g64", 0.1),
        pytest.param("tt_19_70B_g256", 0.1, marks=pytest.mark.slow),
    ],
)
def test_predicted_within_the_band(run_id: str, band: float) -> None:
    run = RUNS[run_id]
    predicted = Predictor().predict(express(run))
    assert abs(predicted.step_s / run.step_s - 1) < band
    assert predicted.compute_s + predicted.comm_s + predicted.idle_s <= predicted.step_s * 1.001


def test_what_a_pin_says_reaches_the_prediction() -> None:
    run = replace(RUNS["vtrain_single_0000"], layers=4)
    predictor = Predictor()
    whole = predictor.predict(express(replace(run, pipeline=1, num_devices=1)))
    halves = predictor.predict(express(run))
    none = predictor.predict(express(replace(run, recompute="none")))
    assert halves.step_s < whole.step_s
    assert none.step_s < halves.step_s
    assert none.peak_memory_bytes > halves.peak_memory_bytes


def test_summary_of_a_hand_made_source() -> None:
    base = RUNS["vtrain_single_0000"]
    runs = [replace(base, id=str(i), step_s=s) for i, s in enumerate((1.0, 2.0, 4.0))]
    predicted = [
        Predicted(run, s, 2 * s, 2**30, s, 0.0, 0.0) for run, s in zip(runs, (2.0, 1.0, 4.0), strict=True)
    ]
    assert [len(sweep) for sweep in sweeps_of(predicted)] == [3]
    fp8 = replace(base, id="fp8", precision="amp_fp8")
    summary = summarise(base.source, [*runs, fp8], predicted)
    assert (summary.num_expressed, summary.num_runs) == (3, 4)
    assert list(summary.not_expressed.values()) == [1]
    assert summary.ours is not None and summary.trivial is not None
    assert summary.ours.error == pytest.approx((1 + 0.5 + 0) / 3)
    assert summary.ours.factor == 1.0
    assert summary.ours.spearman == pytest.approx(0.5)
    assert summary.ours.pick_regret == pytest.approx(1.0)
    assert summary.trivial.factor == 0.5
    assert summary.trivial.scaled_error == pytest.approx(summary.ours.error)
    assert (summary.num_memory, summary.memory_error) == (0, None)


def test_a_source_without_a_run_that_can_be_said_has_no_scores() -> None:
    runs = [replace(RUNS["vtrain_single_0000"], precision="amp_fp8")]
    assert summarise(runs[0].source, runs, []).ours is None


def test_a_plan_is_complete_and_names_every_module() -> None:
    run = RUNS["tt_25_8B_g64"]
    blocks = ["wte", *(f"blocks.{i}" for i in range(run.layers)), "ln_f", "lm_head", "loss"]
    plan = pinned_plan(run, blocks)
    assert (plan.mesh.pipeline, plan.mesh.data, plan.mesh.tensor) == (1, 8, 8)
    words = {line.pattern: line.word for line in plan.recompute}
    assert sum(word == "full" for word in words.values()) == 11  # every third of 32 blocks
    assert "blocks.*.attn.qkv" not in {line.pattern for line in plan.tensor}
