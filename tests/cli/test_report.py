"""``report``: a page and a trace of a plan."""

import json
from pathlib import Path

import pytest

from autopar.cli.main import main


def test_writes_a_page_and_a_trace(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("bokeh")
    page, trace = tmp_path / "report.html", tmp_path / "step.json"
    assert main(["report", str(plan_file), "--quick", "-o", str(page), "--trace", str(trace)]) == 0
    assert capsys.readouterr().out == f"page written to {page}\ntrace written to {trace}\n"
    text = page.read_text()
    assert "Timeline of the step" in text and "blocks.0" in text and "What was considered" not in text
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    assert {event["args"]["stage"] for event in spans} >= {0, 1}


def test_wants_to_know_what_to_write(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(plan_file)]) == 2
    assert "name a page with -o report.html" in capsys.readouterr().err
    assert main(["report", str(plan_file), "-o", "one.html", "--trace", "one.html"]) == 2
    assert "'one.html' cannot be both the page and the trace" in capsys.readouterr().err
    assert main(["report", str(plan_file), "--trace", "-"]) == 2
    assert "name a file" in capsys.readouterr().err
    assert main(["report", str(plan_file), "-o", "/no/such/folder/report.html"]) == 2
    assert "there is no folder" in capsys.readouterr().err
