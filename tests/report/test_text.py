import re
from dataclasses import dataclass, field, replace

import pytest

from autopar.cost.prediction import Prediction, StageMemory, StagePrediction
from autopar.plan.decisions import Mesh, Plan, Precision, ScheduleName
from autopar.report.predicted import predicted_section, prediction_document, status_text
from autopar.report.text import alternatives_table, headline, memory_bar, memory_table, render, stage_table
from autopar.units import GiB

BLOCKS = ("wte", *(f"blocks.{i}" for i in range(12)), "ln_f", "lm_head", "loss")
PLAN = Plan(
    global_batch=64,
    micro_batch=4,
    mesh=Mesh(2, 2, 2),
    precision=Precision.BF16,
    stages=(BLOCKS[:7], BLOCKS[7:]),
    zero=(3, 3),
)


def stage(gib: float) -> StagePrediction:
    memory = StageMemory(GiB, GiB, 2 * GiB, int((gib - 5) * GiB), GiB // 2, GiB // 2)
    return StagePrediction(compute_s=0.08, comm_s=0.01, idle_s=0.01, memory=memory)


PREDICTION = Prediction(
    step_time_s=0.1,
    samples_per_s=640.0,
    mfu=0.4123,
    peak_memory_bytes=19 * GiB,
    memory_limit_bytes=20 * GiB,
    stages=(stage(10), stage(19)),
)


@dataclass(frozen=True)
class Lost:
    mesh: Mesh = field(default_factory=lambda: Mesh(1, 8, 1))
    micro_batch: int = 8
    schedule: ScheduleName = ScheduleName.ZBV
    virtual: int = 2
    offload: str = "none"
    zero: int | tuple[int, ...] = 3
    step_time_s: float | None = 0.25
    peak_memory_bytes: int | None = None
    why_not: str = "2.5x slower"


def shown(*parts: object) -> str:
    return render(parts, is_terminal=False, width=120)  # type: ignore[arg-type]


def test_stage_table_shows_blocks_times_and_memory() -> None:
    lines = shown(stage_table(PLAN, PREDICTION)).splitlines()
    assert lines[0].split()[:3] == ["stage", "blocks", "compute"]
    assert "wte, blocks.0-5" in lines[2] and "80.0 ms" in lines[2] and "10.00 GiB" in lines[2]
    assert "blocks.6-11, ln_f, lm_head, loss" in lines[3] and "19.00 GiB" in lines[3]
    assert lines[2].count("█") == 8 and " 50%" in lines[2]


def test_render_is_plain_unless_for_a_terminal() -> None:
    assert "\x1b" not in shown(memory_bar(stage(19), 20 * GiB))
    assert "\x1b" in render([memory_bar(stage(19), 20 * GiB)], is_terminal=True, width=80)


@pytest.mark.parametrize(
    ("gib", "colour", "share"), [(10, "green", 50), (19, "yellow", 95), (25, "red", 125)]
)
def test_memory_bar_warns_by_colour(gib: float, colour: str, share: int) -> None:
    bar = memory_bar(stage(gib), 20 * GiB)
    assert bar.style == colour and bar.plain.endswith(f"{share}%")
    assert len(bar.plain.split()[0]) == 16


def test_memory_table_adds_up() -> None:
    row = shown(memory_table(PREDICTION.stages)).splitlines()[2].split()
    assert sum(map(float, row[1:-1])) == pytest.approx(float(row[-1])) == 10.0


def test_headline_says_what_how_fast_and_how_sure() -> None:
    text = shown(*headline(PLAN, PREDICTION, "feasible", 0.05, 0.095))
    assert (
        "feasible (at most 5.0% above the bound) under the cost model; no plan is faster than 95.0 ms" in text
    )
    assert "pipeline 2 x data 2 x tensor 2; 8 micro-batches of 4; ZeRO 3; bf16" in text
    assert "step time 100.0 ms, 640 samples/s, MFU 41.2%" in text


def test_alternatives_table_says_why_not() -> None:
    row = shown(alternatives_table([Lost()])).splitlines()[2]
    assert row.split() == "1 x 8 x 1 8 3 zbv x 2 250.0 ms 2.5x slower".split()  # noqa: SIM905


def test_prediction_document_has_the_documented_keys() -> None:
    document = prediction_document(PREDICTION)
    assert list(document) == [
        "step_time_s",
        "samples_per_s",
        "mfu",
        "peak_memory_bytes",
        "memory_limit_bytes",
        "stages",
    ]
    assert list(document["stages"][0]) == ["compute_s", "comm_s", "idle_s", "memory"]
    memory = document["stages"][0]["memory"]
    assert list(memory) == [
        "parameters_bytes",
        "gradients_bytes",
        "optimizer_bytes",
        "activations_bytes",
        "transient_bytes",
        "reserved_bytes",
        "total_bytes",
        "host_bytes",
    ]
    assert memory["total_bytes"] == sum(memory.values()) - memory["total_bytes"] == 10 * GiB


def test_predicted_section_is_for_people() -> None:
    section = predicted_section(PREDICTION, "optimal", 0.0, 0.1)
    assert section["status"] == "optimal" and section["step_time"] == "100.0 ms" and section["mfu"] == "41.2%"
    assert section["peak_memory"] == "19.00 GiB of 20.00 GiB"
    assert section["stages"][1]["memory"] == "19.00 GiB"
    assert status_text("feasible", None) == "feasible"


def test_a_rank_with_two_stages_shows_the_blocks_of_both() -> None:
    stages = (("wte",), ("blocks.0", "blocks.1"), ("blocks.2",), ("ln_f", "loss"))
    plan = replace(PLAN, stages=stages, schedule=ScheduleName.ZBV, virtual=2)
    lines = shown(stage_table(plan, PREDICTION)).splitlines()
    assert "wte | ln_f, loss" in lines[2] and "blocks.0-1 | blocks.2" in lines[3]
    interleaved = replace(plan, schedule=ScheduleName.INTERLEAVED)
    assert "wte | blocks.2" in shown(stage_table(interleaved, PREDICTION)).splitlines()[2]


def test_headline_names_what_most_plans_do_not_have() -> None:
    plan = replace(
        PLAN,
        schedule=ScheduleName.INTERLEAVED,
        virtual=3,
        shard_group=1,
        mesh=replace(PLAN.mesh, order=("data", "pipeline", "tensor")),
        offload="optimizer,activations",
    )
    assert headline(plan, PREDICTION, "feasible", None, None)[1].plain.endswith(
        "; bf16; interleaved; 3 stages a rank; shard groups of 1; ranks vary data > pipeline > tensor; "
        "optimizer and activations offloaded"
    )


def test_host_memory_is_shown_where_something_is_offloaded() -> None:
    assert "host" not in shown(memory_table(PREDICTION.stages))
    away = replace(PREDICTION.stages[0], memory=replace(PREDICTION.stages[0].memory, host_bytes=3 * GiB))
    table = shown(memory_table((away,)))
    assert "on the host" in table and table.splitlines()[2].split()[-2:] == ["10.00", "3.00"]
    prediction = replace(PREDICTION, stages=(away,), peak_host_bytes=3 * GiB, host_limit_bytes=128 * GiB)
    section = predicted_section(prediction, "feasible", None, None)
    assert section["host_memory"] == "3.00 GiB of 128.00 GiB a device"
    assert prediction_document(prediction)["stages"][0]["memory"]["host_bytes"] == 3 * GiB


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_number_is_cut_or_folded_however_narrow_the_terminal(width: int) -> None:
    tables = [
        stage_table(PLAN, PREDICTION),
        memory_table(PREDICTION.stages),
        alternatives_table([Lost(why_not="2.5x slower: communication 40% of the step against 2%")]),
    ]
    text = render(tables, is_terminal=True, width=width)
    for number in ("80.0 ms", "10.00 GiB", "19.00", "250.0 ms"):
        assert number in text
    assert all(f"{share}%" in text for share in (50, 95))
    if width >= 80:
        assert max(map(len, plain(text).splitlines())) <= width


def plain(text: str) -> str:
    return re.sub("\x1b\\[[0-9;]*m", "", text)
