"""``plan`` and ``check`` on a real model: what they print, what they write, what an edit changes."""

import json
import os
from pathlib import Path

import pytest

from autopar.cli.main import main
from autopar.plan.read import parse_plan, plan_of_document, read_plan
from tests.cli.conftest import GPT, PINS, ROOT, SMALL, forget_captures

FLAGS = ["--gpus", "4", "--device", "cpu", "--batch", "16"]
PREDICTED = ["step_time_s", "samples_per_s", "mfu", "peak_memory_bytes", "memory_limit_bytes", "stages"]


def test_plan_prints_the_plan_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", GPT, *SMALL, *FLAGS]) == 0
    out, err = capsys.readouterr()
    plan = parse_plan(out)
    assert plan.cluster is not None and plan.cluster.num_devices == 4
    assert plan.global_batch == 16
    assert "under the cost model" in err and "of the limit" in err and "not chosen" in err


def test_plan_json_is_one_document_with_the_documented_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpt.yaml"
    assert main(["plan", GPT, *SMALL, *FLAGS, "--json", "-o", str(path)]) == 0
    out, _ = capsys.readouterr()
    document = json.loads(out)
    assert list(document) == [
        "schema",
        "status",
        "plan_file",
        "plan",
        "predicted",
        "search",
        "baselines",
        "alternatives",
    ]
    names = [baseline["name"] for baseline in document["baselines"]]
    assert names == ["Megatron", "data parallel", "FSDP"]
    for baseline in document["baselines"]:
        seconds = baseline["step_time_s"]
        assert baseline["remark"] and (seconds is None or seconds >= document["search"]["bound_s"])
    assert (
        document["schema"] == 1
        and document["status"] in ("optimal", "feasible")
        and document["plan_file"] == str(path)
    )
    assert list(document["predicted"]) == PREDICTED
    assert {"wall_s", "capture_s", "solve_s", "num_candidates", "bound_s", "gap"} <= set(document["search"])
    other = document["alternatives"][0]
    assert list(other) == [
        "mesh",
        "micro",
        "zero",
        "schedule",
        "virtual",
        "offload",
        "step_time_s",
        "peak_memory_bytes",
        "why_not",
    ]
    assert list(other["mesh"]) == ["pipeline", "data", "tensor"]
    assert plan_of_document(document["plan"], {}, "json") == read_plan(path)
    assert main(["check", str(path), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert "search" not in checked
    assert checked["predicted"] == document["predicted"] and checked["plan"] == document["plan"]


def test_two_runs_write_the_same_bytes(planned_text: str, tmp_path: Path) -> None:
    path = tmp_path / "again.yaml"
    forget_captures()
    pins = [x for pin in PINS.split() for x in ("--set", pin)]
    assert main(["plan", GPT, *SMALL, *FLAGS, *pins, "-q", "-o", str(path)]) == 0
    assert path.read_text() == planned_text


def test_check_recosts_right_edits(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = plan_file.read_text()

    def cost(old: str, new: str) -> float:
        assert old in text
        plan_file.write_text(text.replace(old, new, 1))
        status = main(["check", str(plan_file), "--json", "-q"])
        out, err = capsys.readouterr()
        assert status == 0, err
        return float(json.loads(out)["predicted"]["step_time_s"])

    planned = cost("zero", "zero")
    edits = [("blocks.0-1: full", "blocks.0-3: full"), ("micro: 4", "micro: 2")]
    edits += [
        ("qkv: column", "qkv: replicate"),
        ("blocks.0-1]\n    - [blocks.2-3", "blocks.0]\n    - [blocks.1-3"),
    ]
    assert all(cost(old, new) != planned for old, new in edits)


def test_check_set_says_what_a_change_would_cost(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(plan_file), "--json", "-q", "--set", "recompute=full"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["recompute"] == "full"
    assert main(["check", str(plan_file), "--set", "mesh.tensor=1"]) == 4
    assert (
        "--set mesh.tensor=1: the mesh pipeline 2 x data 1 x tensor 1 is 2 devices" in capsys.readouterr().err
    )


def test_check_for_other_devices_warns_and_recosts(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(plan_file), "--device", "l4"]) == 0
    out, err = capsys.readouterr()
    assert "warning: the plan was made for 4 x cpu; costed for 4 x l4-24gb" in err
    assert "22.03 GiB" not in err and "of the limit" in out


def test_a_cluster_file_that_says_otherwise_than_the_plan_is_named(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = plan_file.parent / "joined.yaml"
    file.write_text("version: 1\ndevice: l4-24gb\nnodes: 2\ndevices_per_node: 2\n")
    text = plan_file.read_text()
    assert "devices_per_node: 4}" in text
    plan_file.write_text(text.replace("devices_per_node: 4}", f"devices_per_node: 4, file: {file}}}"))
    assert main(["check", str(plan_file)]) == 0
    err = capsys.readouterr().err
    assert "the plan was made for 4 x cpu; costed for 4 x l4-24gb (2 x 2), as its cluster file" in err
    assert f"'{file}' says: change that file, or delete cluster.file" in err


def test_check_of_a_plan_that_does_not_fit_names_the_shortfall(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(plan_file), "--memory-limit", "300MiB"]) == 3
    out, err = capsys.readouterr()
    assert out.startswith("infeasible") and "memory of stage" in err and "more than the 300.00 MiB" in err


def test_a_limit_above_what_the_device_has_is_told(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(plan_file), "--memory-limit", "300GiB"]) == 0
    assert "the memory limit of 300.00 GiB is more than the" in capsys.readouterr().err


def test_plan_that_nothing_fits_is_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", GPT, *SMALL, *FLAGS, "--memory-limit", "304MiB", "--json"]) == 3
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("autopar: no plan fits: memory of stage ")
    document = json.loads(out)
    assert document["status"] == "infeasible" and document["shortfall_bytes"] > 0 and document["binding"]


def test_plan_with_a_file_keeps_its_lines(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_file.write_text("mesh: {data: 4}\nzero: 3\n")
    assert main(["plan", GPT, *SMALL, *FLAGS, "--with", str(plan_file), "-q"]) == 0
    plan = parse_plan(capsys.readouterr().out)
    assert plan.mesh.data == 4 and plan.zero == 3
    assert main(["plan", GPT, *SMALL, *FLAGS, "--with", str(plan_file), "--set", "zero=0"]) == 4
    assert (
        "gpt.yaml:2:1: zero is 3 here and 0 in --set zero=0; both are constraints" in capsys.readouterr().err
    )


def test_plan_with_a_whole_plan_of_the_same_model_changes_nothing(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", GPT, "--with", str(plan_file)]) == 0  # its arguments and devices are in the file
    out, err = capsys.readouterr()
    lines = plan_file.read_text().splitlines(keepends=True)
    # Every line is a constraint now: none was chosen.
    assert out == "".join(line for line in lines if not line.startswith("  chosen:"))
    assert "note:" not in err


def test_plan_with_a_plan_of_another_model_says_so(
    plan_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_file.write_text("model: {source: x.py, fingerprint: abc}\nzero: 0\n")
    assert main(["plan", GPT, *SMALL, *FLAGS, "--with", str(plan_file)]) == 0
    assert "note: the constraints were written for another model than this one" in capsys.readouterr().err


def test_check_finds_the_model_beside_the_plan(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gpt.py").write_text(Path(GPT).read_text())
    plan_file.write_text(plan_file.read_text().replace(GPT, "gpt.py"))
    monkeypatch.chdir(ROOT)
    assert main(["check", str(plan_file), "-q"]) == 0


def test_output_is_written_whole_with_usual_permissions(plan_file: Path, tmp_path: Path) -> None:
    from autopar.cli.files import write_whole

    write_whole(tmp_path / "new.yaml", "a: 1\n")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "new.yaml").stat().st_mode & 0o777 == 0o666 & ~mask
    link = tmp_path / "link.yaml"
    link.symlink_to(plan_file)
    write_whole(link, "b: 1\n")
    assert link.is_symlink() and plan_file.read_text() == "b: 1\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gpt.yaml", "link.yaml", "new.yaml"]


def test_plan_batch_auto_tells_every_batch(capsys: pytest.CaptureFixture[str]) -> None:
    pins = [x for pin in ("mesh.pipeline=1", "mesh.tensor=1", "zero=0") for x in ("--set", pin)]
    flags = ["--gpus", "2", "--device", "cpu", "--batch", "auto", "--top", "1"]
    assert main(["plan", GPT, *SMALL, *flags, *pins, "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    rates = {tried["global_batch"]: tried["samples_per_s"] for tried in document["batches"]}
    assert document["plan"]["batch"]["global"] == max(rates, key=lambda size: rates[size])
    assert document["predicted"]["samples_per_s"] == pytest.approx(max(rates.values()))
    assert f"the best of {len(rates)} tried (samples/s: 2: " in err


def test_batch_auto_is_for_plan_alone_and_excludes_a_pinned_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", GPT, *SMALL, "--batch", "most"]) == 2
    assert "'most' is not a whole number of at least 1, nor 'auto'" in capsys.readouterr().err
    assert main(["verify", GPT, *SMALL, "--batch", "auto"]) == 2
    assert "'auto' is not a whole number" in capsys.readouterr().err
    assert main(["plan", GPT, *SMALL, "--gpus", "2", "--batch", "auto", "--set", "batch.global=8"]) == 4
    assert "--set batch.global=8: batch.global is 8 here and auto in --batch auto" in capsys.readouterr().err
