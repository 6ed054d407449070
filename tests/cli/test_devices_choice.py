import argparse
from pathlib import Path

import pytest

from autopar.cli.devices_choice import choose_cluster, is_replanned, memory_limit_bytes, reference_to
from autopar.cli.flags import add_device_flags, model_arguments
from autopar.errors import PlanError, UsageError
from autopar.plan.decisions import ClusterReference, Plan
from autopar.plan.read import parse_plan
from autopar.plan.write import write_plan


def parsed(flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_device_flags(parser)
    return parser.parse_args(flags.split())


@pytest.mark.parametrize(
    ("flags", "device", "nodes", "per_node", "said"),
    [
        ("--gpus 8 --device h100", "h100-sxm-80gb", 1, 8, ""),
        ("--gpus 4 --device h100", "h100-sxm-80gb", 1, 4, ""),
        ("--gpus 16 --gpus-per-node 4 --device t4", "t4-16gb", 4, 4, ""),
        ("--gpus 1024 --device a100-sxm-80gb", "a100-sxm-80gb", 128, 8, ""),
        ("--device l4", "l4-24gb", 1, 8, "device: 8 x l4-24gb (one node of 8: choose with --gpus)"),
    ],
)
def test_flags_choose_the_cluster(flags: str, device: str, nodes: int, per_node: int, said: str) -> None:
    cluster, choice = choose_cluster(parsed(flags))
    assert reference_to(cluster) == ClusterReference(device, nodes, per_node)
    assert choice == said


def test_without_flags_the_choice_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cluster, choice = choose_cluster(parsed("--gpus 2"))
    assert cluster.device.name == "h100-sxm-80gb"
    assert choice == "device: 2 x h100-sxm-80gb (no GPU found on this machine; choose with --device)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    cluster, choice = choose_cluster(parsed(""))
    assert (cluster.device.name, cluster.num_devices) == ("t4-16gb", 4)
    assert choice == "device: 4 x t4-16gb (found on this machine)"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Abacus 9000")
    _, choice = choose_cluster(parsed("--gpus 8"))
    assert "there is no cost model for the 'Abacus 9000' found here; choose with --device" in choice


def test_a_plan_chooses_where_the_flags_are_silent() -> None:
    plan = parse_plan("cluster: {device: a100-sxm-80gb, nodes: 2, devices_per_node: 4}\n", "p.yaml")
    assert reference_to(choose_cluster(parsed(""), plan)[0]) == ClusterReference("a100-sxm-80gb", 2, 4)
    assert reference_to(choose_cluster(parsed("--device h200"), plan)[0]) == ClusterReference(
        "h200-sxm-141gb", 2, 4
    )
    assert reference_to(choose_cluster(parsed("--gpus 16"), plan)[0]) == ClusterReference(
        "a100-sxm-80gb", 4, 4
    )
    unknown = parse_plan("cluster: {device: a1000, nodes: 2, devices_per_node: 4}\n", "p.yaml")
    with pytest.raises(PlanError, match=r"^p.yaml:1:\d+: unknown device 'a1000'"):
        choose_cluster(parsed(""), unknown)


def test_devices_that_fill_no_whole_nodes_are_refused() -> None:
    with pytest.raises(UsageError, match="12 devices do not fill nodes of 8"):
        choose_cluster(parsed("--gpus 12 --device h100"))


def test_model_arguments_are_yaml_scalars() -> None:
    given = "n=4 lr=1e-3 x=0.5 flag=true name=gpt none=null text=a=b star=* colon=a:b".split()  # noqa: SIM905
    assert model_arguments(given) == {
        "n": 4,
        "lr": 1e-3,
        "x": 0.5,
        "flag": True,
        "name": "gpt",
        "none": None,
        "text": "a=b",
        "star": "*",
        "colon": "a:b",
    }


CLUSTER_FILE = """\
version: 1
device: a100-sxm-80gb
nodes: 2
devices_per_node: 8
network: {bandwidth_per_device: {value: 1.5, unit: GB/s}}
"""


def test_a_plan_made_for_a_cluster_file_is_checked_with_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.yaml").write_text(CLUSTER_FILE)
    monkeypatch.chdir(tmp_path)
    cluster, _ = choose_cluster(parsed("--cluster slow.yaml"))
    reference = reference_to(cluster, 70 * 2**30)
    assert reference == ClusterReference("a100-sxm-80gb", 2, 8, "slow.yaml", 70 * 2**30)
    plan = parse_plan(write_plan(Plan(cluster=reference)), str(tmp_path / "plan.yaml"))
    again, _ = choose_cluster(parsed(""), plan)
    assert again.network.bytes_per_s == cluster.network.bytes_per_s == 1.5e9
    assert plan.cluster is not None and not is_replanned(again, plan.cluster)
    # More devices are joined by the same links; another device has its own.
    assert choose_cluster(parsed("--gpus 32"), plan)[0].network.bytes_per_s == 1.5e9
    assert choose_cluster(parsed("--gpus 32"), plan)[0].nodes == 4
    assert choose_cluster(parsed("--device h100"), plan)[0].network.bytes_per_s > 1.5e9
    # From another folder the file is found beside the plan; elsewhere its lack is an error.
    monkeypatch.chdir("/")
    assert choose_cluster(parsed(""), plan)[0].network.bytes_per_s == 1.5e9
    (tmp_path / "slow.yaml").unlink()
    with pytest.raises(
        PlanError, match=r"plan.yaml:\d+:\d+: .*'slow.yaml', which is not here; give it with --cluster"
    ):
        choose_cluster(parsed(""), plan)


def test_the_memory_limit_of_a_plan_holds_for_its_own_device() -> None:
    text = "cluster: {device: a100-sxm-80gb, nodes: 2, devices_per_node: 4, memory_limit: 70GiB}\n"
    plan = parse_plan(text, "p.yaml")
    assert memory_limit_bytes(parsed(""), plan) == 70 * 2**30
    assert memory_limit_bytes(parsed("--memory-limit 60GiB"), plan) == 60 * 2**30
    assert memory_limit_bytes(parsed("--gpus 16"), plan) == 70 * 2**30
    assert memory_limit_bytes(parsed("--device t4"), plan) is None
    cluster, _ = choose_cluster(parsed(""), plan)
    assert plan.cluster is not None and not is_replanned(cluster, plan.cluster)
