"""Compiled programs: the same results, collectives where they were, equal runs compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from autopar.lower.block import lower_block
from autopar.lower.compiled import Compiler
from autopar.lower.resolve import resolve
from tests.lower.chain import assert_same, run_plain, run_sharded
from tests.lower.models import MODELS, load, plan_for, tensors_of


class Recorder:
    """Stands for a compiler: runs graphs as they are, and remembers them."""

    def __init__(self) -> None:
        self.bodies: list[fx.GraphModule] = []

    def __call__(self, body: fx.GraphModule, draws: bool) -> Callable[..., Any]:
        self.bodies.append(body)
        return body


def communicating(program: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.meta.get("collectives")]


@pytest.mark.parametrize("name", ["gpt", "resnet", "perception", "recommender", "hf-gpt2"])
def test_compiled_program_is_the_program(name: str) -> None:
    toy, (source, graph) = MODELS[name], load(name)
    resolved = resolve(plan_for(graph, {**toy.vocab, **toy.tensor}, 2), graph)
    state, batch = tensors_of(source)
    recorder = Recorder()
    compiler = Compiler(recorder)
    result = run_sharded(resolved, state, batch, compiler.program)
    assert_same(result, run_plain(graph, state, batch), toy.tolerance)
    assert len(recorder.bodies) == compiler.num_runs > 0


def test_compiler_leaves_the_collectives_and_compiles_the_rest() -> None:
    _, graph = load("gpt")
    resolved = resolve(plan_for(graph, MODELS["gpt"].tensor, 2), graph)
    recorder = Recorder()
    compiler = Compiler(recorder)
    for decision in resolved.blocks:
        program = lower_block(decision.block, decision.sharding).graph
        compiled = compiler.program(program)
        assert communicating(compiled) == communicating(program)
        left = [n for n in compiled.graph.nodes if n.op == "call_function" and "aten" in str(n.target)]
        assert len(left) <= 1 + len(communicating(program))  # single operators between collectives
    assert not any(communicating(body) for body in recorder.bodies)


def test_equal_runs_are_compiled_once() -> None:
    _, graph = load("gpt")
    resolved = resolve(plan_for(graph, MODELS["gpt"].tensor, 2), graph)
    blocks = [d for d in resolved.blocks if d.block.name.startswith("blocks.")]
    assert len(blocks) > 1
    recorder = Recorder()
    compiler = Compiler(recorder)
    counts = []
    for decision in blocks:
        compiler.program(lower_block(decision.block, decision.sharding).graph)
        counts.append(compiler.num_runs)
    assert len(set(counts)) == 1


@pytest.mark.parametrize("degree", [1, 2])
def test_images_keep_their_channels_last_from_one_run_to_the_next(degree: int) -> None:
    toy, (source, graph) = MODELS["resnet"], load("resnet")
    resolved = resolve(plan_for(graph, toy.tensor if degree > 1 else {}, degree), graph)
    state, batch = tensors_of(source)
    asked: list[bool] = []

    def compile_run(body: fx.GraphModule, draws: bool) -> Callable[..., Any]:
        def run(*values: Any) -> Any:
            images = [value for value in values if value.dim() == 4 and not value.is_leaf]
            asked.extend(value.is_contiguous(memory_format=torch.channels_last) for value in images)
            return body(*values)

        return run

    result = run_sharded(resolved, state, batch, Compiler(compile_run, channels_last=True).program)
    assert_same(result, run_plain(graph, state, batch), toy.tolerance)
    assert asked
    assert all(asked) or degree > 1  # what a collective gives lies as it always does


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch itself, while it compiles
@pytest.mark.parametrize("name", ["gpt", "resnet"])
def test_torch_compile_gives_the_same_gradients(name: str) -> None:
    source, graph = load(name)
    resolved = resolve(plan_for(graph, {}, 1), graph)
    state, batch = tensors_of(source)
    compiled = run_sharded(resolved, state, batch, Compiler(channels_last=True).program)
    assert_same(compiled, run_plain(graph, state, batch), 1e-10)
