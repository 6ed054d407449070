import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from autopar import __version__
from autopar.cli import main as cli
from autopar.cli.main import build_parser, main
from autopar.errors import (
    CaptureError,
    CostModelError,
    DifferenceError,
    DistributedError,
    InfeasibleError,
    PlanError,
    UsageError,
)

OPTIONS = {
    "plan": "MODEL --arg --batch --cluster --device --effort --gpus --gpus-per-node --help --json --like "
    "--memory-limit --optimizer --output --precision --quiet --seed --set --time-limit --top "
    "--verbose --with",
    "check": "PLAN --cluster --device --gpus --gpus-per-node --help --json --memory-limit --output --quiet "
    "--set --verbose",
    "verify": "TARGET --arg --as-planned --batch --cluster --device --effort --gpus --gpus-per-node --help "
    "--json --memory-limit --optimizer --precision --quiet --seed --set --steps --time-limit --timeout "
    "--tolerance --top --verbose --with",
    "profile": "--arg --device --help --json --micro --model --name --output --precision --processes --quick "
    "--quiet --timeout --verbose",
    "explain": "PLAN --cluster --device --free --gpus --gpus-per-node --help --json --memory-limit --node "
    "--quick --quiet --set --time-limit --top --verbose",
    "diff": "A B --cluster --device --gpus --gpus-per-node --help --json --memory-limit --quiet --text-only "
    "--verbose",
    "report": "PLAN --cluster --device --gpus --gpus-per-node --help --json --memory-limit --output --quick "
    "--quiet --set --time-limit --trace --verbose",
    "devices": "--help --json",
    "schema": "KIND --help --json --output --quiet --verbose",
    "export": "PLAN --help --json --output --quiet --set --to --verbose",
}


def test_options_of_each_verb_are_frozen() -> None:
    found = {}
    verbs = next(action for action in build_parser()._actions if action.dest == "verb").choices
    assert isinstance(verbs, dict)
    for name, parser in verbs.items():
        names = [a.option_strings[-1] if a.option_strings else a.metavar for a in parser._actions]
        found[name] = " ".join(sorted(names))
    assert found == {name: " ".join(sorted(options.split())) for name, options in OPTIONS.items()}


@pytest.mark.parametrize(
    "argv", [["--help"], ["plan", "--help"], ["--version"], ["devices"], ["devices", "--json"]]
)
def test_light_commands_do_not_import_torch(argv: list[str]) -> None:
    program = (
        "import sys\n"
        "from autopar.cli.main import main\n"
        f"try: status = main({argv})\n"
        "except SystemExit as end: status = end.code\n"
        "heavy = [m for m in ('torch', 'ortools', 'transformers', 'numpy') if m in sys.modules]\n"
        "print(status, heavy, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "0 []"
    assert done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"autopar {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", r"autopar: name a verb \(plan, check, .*\)$"),
        (
            "pln x.py",
            r"^autopar: there is no verb 'pln'; did you mean 'plan'\? \(verbs: plan, check, ",
        ),
        ("plan", r"^autopar: the following arguments are required: MODEL \(see `autopar plan --help`\)$"),
        (
            "plan x.py --gpu 8",
            r"^autopar: unknown argument '--gpu'; did you mean '--gpus'\? \(see `autopar plan --he",
        ),
        ("plan x.py y.py", r"^autopar: unknown argument 'y.py'"),
        ("plan x.py --gpus eight", r"^autopar: argument --gpus: 'eight' is not a whole number of at least 1"),
        ("plan x.py --gpus 0", r"^autopar: argument --gpus: '0' is not a whole number of at least 1"),
        ("plan x.py --gpus", r"^autopar: argument --gpus: expected one argument"),
        ("plan x.py --time-limit soon", r"'soon' is not a number of seconds above 0"),
        ("plan x.py --time-limit nan", r"'nan' is not a number of seconds above 0"),
        ("plan x.py --precision fp8", r"argument --precision: invalid choice: 'fp8' \(choose from"),
        (
            "plan x.py --memory-limit 80Gb/s",
            r"--memory-limit: '80Gb/s' is not a size; write a number with a unit",
        ),
        ("plan x.py --memory-limit 80", r"--memory-limit: '80' is not a size; write a number with a unit"),
        ("plan x.py --device h300", r"^autopar: unknown device 'h300'"),
        (
            "plan x.py --device a100",
            r"^autopar: device 'a100' is ambiguous: it may be a100-sxm-40gb or a100-sxm-80gb",
        ),
        ("plan x.py --device cpu --gpus 4", r"^autopar: target 'x.py': there is no file 'x.py'"),
        ("plan x.py --cluster none.yaml", r"--cluster: there is no file 'none.yaml'"),
        ("plan x.py --cluster c.yaml --gpus 8", r"--cluster names the devices, so --gpus has nothing to say"),
        (
            "plan x.py --with none.yaml",
            r"--with: there is no file 'none.yaml'; did you mean 'one.yaml'\?$",
        ),
        ("plan x.py --with .", r"--with: '.' is a folder; name a file"),
        ("plan x.py -o .", r"-o: '.' is a folder; name a file in it"),
        ("plan x.py -o no/such/plan.yaml", r"-o: there is no folder 'no/such'; make it first"),
        (
            "plan x.py --set mesh.tensr=4",
            r"--set mesh.tensr=4: 'mesh.tensr' cannot be set; did you mean 'mesh.tensor'",
        ),
        ("plan x.py --device cpu --arg n_layer", r"--arg n_layer: write --arg NAME=VALUE"),
        (
            "plan x.py --device cpu --arg n=1 --arg n=2",
            r"--arg n=2: 'n' is given twice, first as 1; keep one",
        ),
        ("check none.yaml", r"PLAN: there is no file 'none.yaml'"),
        ("check .", r"PLAN: '.' is a folder; name a file"),
        ("verify none.yaml", r"TARGET: there is no file 'none.yaml'"),
        (
            "verify one.yaml --gpus 4",
            r"--gpus is for planning, but 'one.yaml' is a plan already; change it with --set",
        ),
        ("verify one.yaml --tolerance 0", r"argument --tolerance: '0' is not a number above 0, e.g. 1e-9"),
        ("devices --all", r"unknown argument '--all'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    argv: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("zero: 1\n")
    assert main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(message, err.splitlines()[-1])
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if line.startswith("autopar:")]) == 1


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (UsageError("x"), 2),
        (InfeasibleError("x"), 3),
        (PlanError("x"), 4),
        (CostModelError("x"), 4),
        (CaptureError("x"), 5),
        (DifferenceError("x"), 6),
        (DistributedError("x"), 1),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
    ],
)
def test_exit_status_of_every_error(
    problem: BaseException, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr("autopar.cli.devices.execute", fail)
    assert main(["devices"]) == status
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err and err.startswith("autopar: ")
    assert ("bug: RuntimeError: x" in err) == isinstance(problem, RuntimeError)


def test_what_a_model_prints_stays_out_of_stdout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(_: object) -> cli.Outcome:
        print("hello from build_model")
        return cli.Outcome("result\n")

    monkeypatch.setattr("autopar.cli.devices.execute", talk)
    assert main(["devices"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("result\n", "hello from build_model\n")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    command = f"set -o pipefail; {sys.executable} -m autopar.cli devices | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")  # 0 when the pipe took it all before its reader went


def test_a_terminal_without_utf8_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(stream, "isatty", lambda: True)
    assert written_to(stream, monkeypatch) == b"50 ?s ?\n"


def test_a_pipe_gets_utf8_whatever_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    assert written_to(stream, monkeypatch) == "50 µs █\n".encode()


def written_to(stream: io.TextIOWrapper, monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr("autopar.cli.devices.execute", lambda _: cli.Outcome("50 µs █\n"))
    assert main(["devices"]) == 0
    return stream.buffer.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_full_disk_behind_stdout_is_told() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "autopar.cli", "schema"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"autopar: the result cannot be written: No space left on device; .*\n", done.stderr)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        ("plan none.py --device cpu --json", "usage"),
        ("pln --json", "usage"),
        ("check one.yaml --json", "invalid"),
        ("explain one.yaml --json", "invalid"),
        ("diff one.yaml none.yaml --json", "invalid"),
        ("export one.yaml --to megatron --json", "invalid"),
    ],
)
def test_errors_are_json_too_where_json_is_asked_for(
    argv: str,
    status: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text("zero: 7\nmesh: 3\n")
    exit_status = main(argv.split())
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["status"], document["exit_status"]) == (status, exit_status)
    assert err.splitlines()[-1].removeprefix("autopar: ") in document["message"]
    if status == "invalid":
        assert [(e["line"], e["key"]) for e in document["errors"]] == [(1, "zero"), (2, "mesh")]
