"""``parallelize`` as a script calls it: from a plan file, under torchrun; and what it refuses."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import autopar
from autopar.capture.capture import capture
from autopar.capture.target import load_target
from autopar.errors import PlanError, UsageError
from autopar.plan.decisions import ClusterReference, ModelReference
from autopar.plan.write import write_plan
from autopar.verify.rank import micro_batches_of
from autopar.verify.reference import Reference
from tests.runtime.plans import make_plan
from tests.runtime.world import MODELS, ROOT

MODEL = str(MODELS / "tied_gpt.py")


@pytest.fixture(scope="module")
def source():
    return load_target(MODEL)


@pytest.fixture(scope="module")
def plan(source):
    plan = make_plan(capture(source).at(2), pipeline=2)
    plan = replace(plan, global_batch=8, model=ModelReference(MODEL))
    return replace(plan, cluster=ClusterReference("cpu", 1, 2))


def torchrun(num_processes, *arguments):
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(num_processes),
    ]
    script = str(Path(__file__).parent / "train_with_plan.py")
    return subprocess.run(
        [*command, script, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )


def test_a_script_trains_from_a_plan_file_as_one_process_does(source, plan, tmp_path):
    path, result = tmp_path / "plan.yaml", tmp_path / "losses.json"
    path.write_text(write_plan(plan, {"step_time": "1.0 ms", "peak_memory": "2.00 GiB"}))
    run = torchrun(2, MODEL, str(path), str(result))
    assert run.returncode == 0, run.stderr[-3000:]
    assert "predicted 1.0 ms" in run.stderr and "predicted 2.00 GiB" in run.stderr
    reference = Reference(source, ["tokens", "labels"], dtype=torch.float32)
    optimizer = torch.optim.AdamW(reference.model.parameters(), lr=1e-2)
    expected = []
    for _ in range(3):
        expected.append(reference.step(micro_batches_of(source.example_batch(8), {}, 2)))
        torch.nn.utils.clip_grad_norm_(reference.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert json.loads(result.read_text()) == pytest.approx(expected, rel=1e-5)


def test_the_wrong_number_of_processes_is_refused(source, plan):
    with pytest.raises(
        UsageError,
        match=r"for 2 processes \(pipeline 2 x data 1 x tensor 1\), and 1 run; start with: torchrun",
    ):
        autopar.parallelize(source.build_model, plan)


def test_an_incomplete_plan_is_refused_with_the_command_that_completes_it(source, plan):
    with pytest.raises(
        PlanError, match=r"the plan leaves open: zero; complete it with: autopar plan .*tied_gpt.py"
    ):
        autopar.parallelize(source.build_model, replace(plan, zero=None))


def test_an_incomplete_plan_without_a_model_is_first_of_all_incomplete(source, plan):
    with pytest.raises(PlanError, match="the plan leaves open: zero; complete it with: autopar plan MODEL"):
        autopar.parallelize(source.build_model, replace(plan, zero=None, model=None))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            torch.nn.Linear(2, 2),
            r"given a Linear, not a function: .* parallelize\(lambda: Linear\(...\), plan",
        ),
        ("model.py", r"given a str, not a function: give a function that builds the model"),
    ],
)
def test_a_model_in_the_place_of_its_builder_is_refused(plan, given, message):
    with pytest.raises(UsageError, match=message):
        autopar.parallelize(given, plan)


def test_a_plan_without_a_model_needs_an_example_batch(source, plan):
    with pytest.raises(UsageError, match="needs example_batch: the plan names no model file"):
        autopar.parallelize(source.build_model, replace(plan, model=None))


def test_only_these_names_are_exported_and_torch_comes_late():
    names = ["ParallelModel", "__version__", "export_checkpoint", "latest_checkpoint", "parallelize"]
    assert autopar.__all__ == names
    code = "import sys, autopar; assert 'torch' not in sys.modules; autopar.parallelize; sys.modules['torch']"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
