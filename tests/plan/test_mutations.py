"""Mutated plan, cluster and cost-model files: each is accepted and means something, or refused in a line."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from autopar.errors import FileError, UsageError
from autopar.hardware.catalog import cost_models_folder
from autopar.hardware.cluster import Cluster, make_cluster
from autopar.hardware.link import CollectiveKind
from autopar.hardware.read_cluster import load_cluster
from autopar.hardware.read_device import read_device
from autopar.hardware.yaml_lines import read_yaml
from autopar.plan.document import to_document
from autopar.plan.merge import merge
from autopar.plan.pins import parse_sets
from autopar.plan.read import parse_plan, read_plan
from autopar.plan.schema import json_schema
from autopar.plan.write import write_plan
from tests.plan.mutations import BOMBS, VALUES, mutated
from tests.plan.test_read import PLAN
from tests.plan.test_schema import CLUSTER

PARTIAL = """\
mesh: {tensor: "<=4", pipeline: 2-4}
batch: {micro: ">=2"}
pipeline:
  blocks_per_stage: {0: "<=10", last: 2-8, "*": ">=1"}
tensor: {blocks.*.attn.qkv: column}
recompute: {blocks.0-5: [selective, full], "*": none}
zero: 1-2
"""
MODEL = (cost_models_folder() / "cpu.yaml").read_text()
GPU = (cost_models_folder() / "h100-sxm-80gb.yaml").read_text()
TOO_LONG_S = 5.0

VALIDATORS = {
    kind: jsonschema.Draft7Validator(json_schema(kind)) for kind in ("plan", "cluster", "cost-model")
}


def check_plan_file(path: Path) -> None:
    plan = read_plan(path)
    again = parse_plan(write_plan(plan))
    assert again == plan
    json.dumps(to_document(plan), allow_nan=False)
    assert merge(plan) == plan
    document, _ = read_yaml(path, FileError)
    VALIDATORS["plan"].validate(without_nothing(document))


def without_nothing(document: Any) -> Any:
    """A key without a value is as good as no key."""
    if isinstance(document, dict):
        return {key: without_nothing(value) for key, value in document.items() if value is not None}
    return document


def check_device_file(path: Path) -> None:
    device = read_device(path)
    check_times(make_cluster(device, 2, 8))
    for precision in device.peak_flops_per_s:
        assert 0 < device.matmul_flops_per_s(precision, 512.0, 512.0) < math.inf
    assert device.memory_bytes > device.framework_reserved_bytes
    VALIDATORS["cost-model"].validate(read_yaml(path, FileError)[0])


def check_cluster_file(path: Path) -> None:
    check_times(load_cluster(path))
    VALIDATORS["cluster"].validate(without_nothing(read_yaml(path, FileError)[0]))


def check_times(cluster: Cluster) -> None:
    for kind in CollectiveKind:
        for size in (2, min(4, cluster.num_devices)):
            assert 0 < cluster.collective_s(kind, 1e6, size) < math.inf or size == 1
    assert 0 < cluster.p2p_s(1e6, 0, 1) < math.inf


FILES: list[tuple[str, Callable[[Path], None]]] = [
    (PLAN, check_plan_file),
    (PARTIAL, check_plan_file),
    (MODEL, check_device_file),
    (GPU, check_device_file),
    (CLUSTER, check_cluster_file),
]


def try_file(data: bytes, check: Callable[[Path], None], path: Path) -> bool:
    """Whether it was accepted; an error of ours or a hang fails the test."""
    path.write_bytes(data)
    started = time.process_time()
    try:
        check(path)
        accepted = True
    except FileError as problem:
        accepted = False
        for each in problem.problems:
            text = str(each)
            assert "\n" not in text and text.isprintable() and len(text) < 2_600
            assert text.startswith(str(path)) and each.exit_status == 4
    assert time.process_time() - started < TOO_LONG_S, data[:200]
    return accepted


def run(num_mutations: int, first_seed: int, folder: Path) -> None:
    accepted = 0
    for seed in range(first_seed, first_seed + num_mutations):
        rng = random.Random(seed)
        text, check = FILES[seed % len(FILES)]
        data = mutated(text, rng)
        try:
            accepted += try_file(data, check, folder / "file.yaml")
        except BaseException:
            (folder / "failed.yaml").write_bytes(data)
            print(f"seed {seed}: {data[:3000]!r}")
            raise
    assert num_mutations * 0.03 < accepted < num_mutations * 0.6  # else the mutations say nothing


def test_files_as_they_are_are_accepted(tmp_path: Path) -> None:
    assert all(try_file(text.encode(), check, tmp_path / "file.yaml") for text, check in FILES)


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_bombs_do_no_harm(number: int, tmp_path: Path) -> None:
    for check in (check_plan_file, check_cluster_file):
        try_file(BOMBS[number].encode("utf-8", "surrogatepass"), check, tmp_path / "file.yaml")
    assert not os.path.exists("/tmp/autopar-was-here")


def test_mutations_are_accepted_or_refused_in_one_line(tmp_path: Path) -> None:
    run(300, 0, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("tenth", range(10))
def test_five_thousand_mutations_are_accepted_or_refused_in_one_line(tenth: int, tmp_path: Path) -> None:
    run(500, 1_000 + 500 * tenth, tmp_path)


@pytest.mark.parametrize(
    "key", ["mesh.tensor", "zero", "tensor.wte", "recompute", "pipeline.stages", "precision"]
)
def test_set_takes_or_refuses_any_value(key: str) -> None:
    for value in (*VALUES, "\udcff", "a\nb", "x: y: z"):
        try:
            parse_sets([f"{key}={value}"])
        except UsageError as problem:
            lines = str(problem).split("\n")
            assert len(lines) < 4 and all(line.startswith("--set ") for line in lines)
