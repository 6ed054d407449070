"""``diff``: the lines in which two plans differ, and what each does."""

import json
from pathlib import Path

import pytest

from autopar.cli.main import main


@pytest.fixture
def edited(plan_file: Path) -> Path:
    path = plan_file.with_name("edited.yaml")
    text = plan_file.read_text().replace("micro: 4", "micro: 2").replace("\nzero: 0", "\nzero: 1")
    assert text != plan_file.read_text()
    path.write_text(text)
    return path


def test_lines_alone_need_no_model(plan_file: Path, edited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (plan_file, edited):
        path.write_text(path.read_text().replace("examples/gpt.py", "examples/gone.py"))
    assert main(["diff", str(plan_file), str(edited), "--text-only", "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    assert lines == [
        {"key": "batch.micro", "first": "4", "second": "2"},
        {"key": "zero", "first": "0", "second": "1"},
    ]
    assert main(["diff", str(plan_file), str(edited)]) == 0
    out, err = capsys.readouterr()
    assert "batch.micro" in out and "only their lines are compared" in err
    assert main(["diff", str(plan_file), str(plan_file)]) == 0
    assert capsys.readouterr().out == "the plans say the same\n"


def test_each_decision_alone_and_the_rest_make_the_difference(
    plan_file: Path, edited: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diff", str(plan_file), str(edited), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [effect["key"] for effect in document["decisions"]] == ["batch.micro", "zero"]
    alone_s = sum(effect["extra_s"] for effect in document["decisions"])
    whole_s = document["second"]["step_time_s"] - document["first"]["step_time_s"]
    assert alone_s + document["rest_s"] == pytest.approx(whole_s, abs=1e-12)
