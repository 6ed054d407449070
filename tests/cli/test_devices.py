import json

import pytest

from autopar.cli.main import main

NAMED = [
    "v100-sxm-32gb",
    "a100-sxm-40gb",
    "a100-sxm-80gb",
    "h100-sxm-80gb",
    "h200-sxm-141gb",
    "b200-sxm-180gb",
    "mi300x-192gb",
    "rtx4090-24gb",
    "l4-24gb",
    "t4-16gb",
    "jetson-orin-64gb",
    "cpu",
]


def test_devices_lists_every_cost_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out
    lines = out.splitlines()
    assert lines[0].split()[0] == "device"
    assert {line.split()[0] for line in lines[1:]} >= set(NAMED)
    assert next(line for line in lines if line.startswith("h100")).split()[1:3] == ["79.10", "GiB"]


def test_devices_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    by_name = {device["name"]: device for device in document["devices"]}
    assert set(by_name) >= set(NAMED)
    assert by_name["t4-16gb"]["memory_bytes"] < 16 * 2**30
