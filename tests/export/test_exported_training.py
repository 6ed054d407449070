"""An exported script trains to the parameters that one process trains to, in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autopar.capture.target import ModelSource, load_target
from autopar.capture.wrapper import wrap_model
from autopar.cli.main import main
from autopar.export.pytorch_script import to_pytorch
from autopar.export.subject import subject_of
from autopar.plan.decisions import Plan
from autopar.plan.read import read_plan

MODEL = str(Path(__file__).parent / "models" / "captions.py")
NUM_STEPS = 2

SAVE = """
found = {}
for part in parts:
    for name, parameter in part.named_parameters():
        name = name.replace("_checkpoint_wrapped_module.", "").removeprefix("module.")
        found[name] = (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()
torch.save(found, f"{__file__}.{torch.distributed.get_rank()}")
torch.distributed.destroy_process_group()
"""


def planned(path: Path, *pins: str) -> Plan:
    flags = [
        "--gpus",
        "4",
        "--device",
        "cpu",
        "--batch",
        "16",
        "--optimizer",
        "sgd",
        "--precision",
        "fp32",
        "-q",
    ]
    pins = ("batch.micro=2", *pins)
    assert main(["plan", MODEL, *flags, "-o", str(path), *(x for pin in pins for x in ("--set", pin))]) == 0
    return read_plan(path)


def trained(script: Path, text: str, num_ranks: int) -> list[dict[str, Tensor]]:
    """The parameters that each rank holds at the end."""
    text = text.replace("\nnum_micro", "\ntorch.set_default_dtype(torch.float64)\nnum_micro", 1)
    script.write_text(text.replace("torch.distributed.destroy_process_group()\n", SAVE))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={num_ranks}",
            script,
        ],
        env=dict(os.environ, OMP_NUM_THREADS="1", STEPS=str(NUM_STEPS), CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(f"{script}.{rank}") for rank in range(num_ranks)]


def trained_alone(plan: Plan, source: ModelSource) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters of one process before and after: every data rank's samples, gradients averaged."""
    assert plan.mesh.data and plan.micro_batch
    local, count = plan.micro_batch * plan.num_micro_batches, plan.mesh.data * plan.num_micro_batches
    batches = []
    for rank in range(plan.mesh.data):
        torch.manual_seed(1 + rank)
        batches.append([source.example_batch(local) for _ in range(NUM_STEPS)])
    torch.manual_seed(0)
    module = source.build_model()
    start = {name: value.detach().clone() for name, value in module.named_parameters()}
    model = wrap_model(module, source.loss, list(source.example_batch(1)))
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    for step in range(NUM_STEPS):
        for of_rank in batches:
            for index in range(plan.num_micro_batches):
                micro = {k: v.chunk(plan.num_micro_batches)[index] for k, v in of_rank[step].items()}
                (model(**micro) / count).backward()
        optimizer.step()
        optimizer.zero_grad()
    return start, dict(module.named_parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "pins",
    [
        pytest.param(
            ["mesh.pipeline=2", "mesh.data=2", "zero=0", "pipeline.schedule=1f1b", "recompute=full"],
            id="pipeline, data, recompute",
        ),
        pytest.param(
            ["mesh.pipeline=2", "mesh.data=2", "zero=2", "pipeline.schedule=gpipe"], id="pipeline, ZeRO"
        ),
        pytest.param(
            ["mesh.pipeline=2", "mesh.data=1", "mesh.tensor=2", "pipeline.schedule=interleaved"],
            id="interleaved, tensor left out",
        ),
        pytest.param(["mesh.tensor=2", "mesh.data=2", "zero=0"], id="tensor, data"),
        pytest.param(["mesh.data=4", "zero=3", "recompute=full"], id="ZeRO 3, recompute"),
    ],
)
def test_a_script_trains_as_one_process_does(tmp_path: Path, pins: list[str]) -> None:
    plan = planned(tmp_path / "plan.yaml", *pins)
    source = load_target(MODEL)
    text = to_pytorch(subject_of(plan, source)).text
    ranks = trained(tmp_path / "script.py", text, 4)
    torch.set_default_dtype(torch.float64)
    try:
        start, wanted = trained_alone(plan, source)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {name for held in ranks for name in held} == set(wanted)
    for held in ranks:
        for name, value in held.items():
            moved, should = value - start[name], wanted[name].detach() - start[name]
            torch.testing.assert_close(moved, should, rtol=1e-8, atol=1e-18)
