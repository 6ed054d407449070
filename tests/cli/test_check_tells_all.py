"""``check`` tells every error at once, what is odd and what it costs, and what a change would do."""

import json
from pathlib import Path

import pytest

from autopar.cli.main import main
from autopar.plan.read import parse_plan, read_plan
from tests.cli.conftest import GPT, SMALL

SEVERAL = {
    "ln_f, lm_head": "ln_g, lm_head",
    "wpe, ": "wpx, ",
    "attn.qkv: column": "attn.qvk: column",
    "attn.proj: row": "attn.proj: shard(7)",
    "blocks.0-1: full": "block.0-1: full",
}


def edit(plan_file: Path, edits: dict[str, str]) -> str:
    text = plan_file.read_text()
    for old, new in edits.items():
        assert old in text, f"{old!r} is not in the plan:\n{text}"
        text = text.replace(old, new, 1)
    plan_file.write_text(text)
    return text


def test_every_error_against_the_model_is_told_with_its_place(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = edit(plan_file, SEVERAL)
    assert main(["check", str(plan_file), "--json"]) == 4
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["schema"], document["status"]) == (1, "invalid")
    told = [(e["line"], e["column"], e["message"]) for e in document["errors"]]
    assert len(told) == len(err.splitlines()) == 5
    assert told == sorted(told, key=lambda error: error[:2])
    for marker, message in (
        ("wpx", "stage 0 names 'wpx'"),
        ("ln_g", "did you mean 'ln_f'?"),
        ("attn.qvk", "'tensor' names 'blocks.*.attn.qvk'"),
        ("attn.proj: shard(7)", "'blocks.*.attn.proj: shard(7)' cannot hold"),
        ("block.0-1", "'recompute' names 'block.0-1'"),
    ):
        found = next(error for error in told if message in error[2])
        line = text.splitlines()[found[0] - 1]
        assert marker in line and line[found[1] - 1] in "-b["


def test_every_error_of_reading_is_told(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(
        plan_file, {"precision: fp32": "precison: fp32", "micro: 4": "micro: four", "\nzero: ": "\nzero: 9 #"}
    )
    assert main(["check", str(plan_file)]) == 4
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 3
    assert "did you mean 'precision'?" in err and "the text 'four'" in err and "'zero' is 9" in err


def test_a_clash_names_the_flag_that_chose_the_devices(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(plan_file), "--gpus", "8", "-q"]) == 4
    assert "and cluster at --gpus 8)" in capsys.readouterr().err
    assert main(["plan", GPT, *SMALL, "--gpus", "4", "--device", "cpu", "--set", "mesh.tensor=3", "-q"]) == 4
    assert "(it clashes with cluster at --gpus 4)" in capsys.readouterr().err


def test_what_does_not_fit_is_told_in_json(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(plan_file), "--memory-limit", "100MiB", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "infeasible" and document["shortfall_bytes"] > 0
    assert document["binding"].startswith("memory of stage") and document["plan"]


def test_the_changed_plan_goes_to_stdout_where_it_is_asked_for(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(plan_file), "--set", "recompute=full", "-o", "-"]) == 0
    out, err = capsys.readouterr()
    assert {line.word for line in parse_plan(out).recompute} == {"full"}
    assert "what if recompute=full" in err and "step time" in err


def test_what_if_says_before_and_after_and_leaves_the_file(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = plan_file.read_text()
    target = tmp_path / "changed.yaml"
    change = ["--set", "recompute=none", "--set", "batch.micro=8"]
    assert main(["check", str(plan_file), *change, "-o", str(target)]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith("what if recompute=none, batch.micro=8\n  step time ")
    assert plan_file.read_text() == before
    changed = read_plan(target)
    assert changed.micro_batch == 8 and {line.word for line in changed.recompute} == {"none"}
    assert main(["check", str(plan_file), *change, "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main(["check", str(plan_file), "--json", "-q"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert document["what_if"]["before"] == alone["predicted"] and "what_if" not in alone
    assert main(["check", str(target), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"] == document["predicted"]


def test_what_is_odd_is_told_with_its_cost(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(
        plan_file,
        {
            "blocks.0-1]\n    - [blocks.2-3": "blocks.0]\n    - [blocks.1-3",
            "tensor: 2}": "tensor: 2, order: [tensor, data, pipeline]}",
            "tensor:  ": 'tensor:\n  "blocks.*": column\n  # ',
            "blocks.0-1: full": "blocks.0-7: full",
        },
    )
    assert main(["check", str(plan_file), "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    step_s = document["predicted"]["step_time_s"]
    by_key = {warning["key"]: warning for warning in document["warnings"]}
    assert 0 < by_key["pipeline.stages"]["cost_s"] < step_s
    assert by_key["pipeline.stages"]["where"].startswith(f"{plan_file}:")
    dead = by_key["tensor.blocks.*.attn.qkv"]["message"] if "tensor.blocks.*.attn.qkv" in by_key else ""
    assert "never applies" in dead or "tensor.blocks.*.attn.proj" in by_key
    beyond = by_key["recompute.blocks.0-7"]
    assert beyond["message"].endswith("reaches beyond the model: it has no blocks.7") and not beyond["cost_s"]
    assert err.count("warning: ") == len(document["warnings"]) >= 2
