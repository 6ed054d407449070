"""``explain``: where a step goes, one module, and what lines cost."""

import json
from pathlib import Path

import pytest

from autopar.cli.main import main
from tests.cli.conftest import GPT, SMALL


def explained(capsys: pytest.CaptureFixture[str], *flags: str) -> dict:
    assert main(["explain", *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_terms_of_every_rank_add_up_to_the_step(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = explained(capsys, str(plan_file), "--quick")
    step_s = document["predicted"]["step_time_s"]
    assert document["step"]["step_time_s"] == step_s
    assert len(document["step"]["ranks"]) == 2
    for terms in document["step"]["ranks"]:
        assert sum(terms.values()) == pytest.approx(step_s, rel=1e-9)
    assert document["step"]["ranks"][0]["recompute_s"] > 0  # blocks 0 and 1 of the first stage
    assert "lines" not in document


def test_one_module_is_told_with_its_collectives(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(plan_file), "--node", "blocks.0.attn"]) == 0
    text = capsys.readouterr().out
    assert "blocks.0.attn: in blocks.0 (stage 0)" in text and "all_reduce" in text and "shard(0, 3)" in text
    assert main(["explain", str(plan_file), "--node", "blocks.3.attn.qkv.weight"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("blocks.3.attn.qkv.weight: in blocks.3 (stage 1)") and "operator" not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quick", "--free", "zero"], "--free asks for a search and --quick forbids it"),
        (["--node", "blocks.0", "--free", "zero"], "--free is about the plan and --node about one module"),
        (["--free", "zeros"], "no decision of a plan; did you mean 'zero'"),
    ],
)
def test_questions_that_make_no_sense(
    plan_file: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert main(["explain", str(plan_file), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_every_line_made_by_hand_costs_the_difference_of_two_plan_runs(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = explained(capsys, str(plan_file), "--free", "mesh", "--top", "3")
    lines = {line["key"]: line for line in document["lines"]}
    assert list(lines) == [
        "batch.micro",
        "mesh.pipeline",
        "mesh.tensor",
        "pipeline.schedule",
        "tensor.blocks.*.attn.qkv",
        "tensor.blocks.*.attn.proj",
        "zero",
        "recompute.blocks.0-1",
    ]

    def step_s(*flags: str) -> float:
        devices = ("--gpus", "4", "--device", "cpu", "--batch", "16")
        assert main(["plan", GPT, *SMALL, *devices, "--json", *flags]) == 0
        found: float = json.loads(capsys.readouterr().out)["predicted"]["step_time_s"]
        return found

    free_s = step_s()
    assert document["free_optimum"]["step_time_s"] == free_s
    for key, pin in (("zero", "zero=0"), ("recompute.blocks.0-1", "recompute.blocks.0-1=full")):
        assert lines[key]["extra_s"] == step_s("--set", pin) - free_s
    assert [freed["key"] for freed in document["freed"]] == ["mesh"]
    assert len(document["runners_up"]) <= 2


@pytest.mark.slow
def test_the_free_optimum_stands_beside_the_plan(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(plan_file)]) == 0
    text = capsys.readouterr().out
    for part in (
        "where the step goes",
        "compute: recompute",
        "tensor axis: collectives",
        "why this mesh",
        "made by hand",
    ):
        assert part in text
