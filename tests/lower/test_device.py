"""A program captured on the CPU runs on another device: here meta, which refuses to meet CPU tensors."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from autopar.lower.axis import FakeAxis
from autopar.lower.block import lower_block
from autopar.lower.device import to_device
from autopar.lower.resolve import resolve
from tests.lower.models import load, plan_for

META = torch.device("meta")


class Recording(fx.Interpreter):
    """Notes the devices of all results."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.devices: set[str] = set()

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        found = result if isinstance(result, tuple) else (result,)
        self.devices.update(x.device.type for x in found if isinstance(x, torch.Tensor))
        return result


@pytest.mark.parametrize("model", ["gpt", "perception", "hf-llama", "hf-t5"])
def test_everything_that_a_program_makes_is_made_on_the_device(model: str) -> None:
    _, graph = load(model)
    num_moved = 0
    for decision in resolve(plan_for(graph, {}, 1), graph).blocks:
        program = lower_block(decision.block, decision.sharding).graph
        moved = to_device(program, META)
        placeholders = list(program.graph.nodes)[1 : 1 + len(decision.block.inputs)]
        arguments = [
            torch.empty(node.meta["val"].shape, dtype=node.meta["val"].dtype, device=META)
            for node in placeholders
        ]
        interpreter = Recording(moved)
        interpreter.run(FakeAxis(1), *arguments)
        assert interpreter.devices == {"meta"}
        num_moved += sum("device" in node.kwargs for node in moved.graph.nodes)
    assert num_moved > 0


def test_on_the_cpu_a_program_stays_itself() -> None:
    _, graph = load("gpt")
    decision = resolve(plan_for(graph, {}, 1), graph).blocks[0]
    program = lower_block(decision.block, decision.sharding).graph
    assert to_device(program, torch.device("cpu")) is program
