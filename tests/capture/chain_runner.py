"""Runs the blocks of a captured model one after another, and compares with the eager wrapper."""

import torch
from torch import Tensor, fx, nn

from autopar.capture.capture import Capture
from autopar.capture.model_graph import InputKind, ModelGraph
from autopar.capture.target import ModelSource
from autopar.capture.wrapper import LossModule, wrap_model


def run_chain(model: ModelGraph, tensors: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
    """The loss of one micro-batch: every block sees only its own inputs."""
    values: dict[str, Tensor] = {}
    for block in model.blocks:
        arguments = []
        for entry in block.inputs:
            match entry.kind:
                case InputKind.ACTIVATION:
                    arguments.append(values[entry.source])
                case InputKind.BATCH:
                    arguments.append(batch[entry.source])
                case InputKind.CONSTANT:
                    arguments.append(model.constants[entry.source])
                case _:
                    arguments.append(tensors[entry.source])
        module = fx.GraphModule(nn.Module(), block.graph)
        results = module(*arguments)
        for name, value in zip(block.outputs, results, strict=True):
            if name in model.values:
                spec = model.values[name]
                assert (tuple(value.shape), value.dtype) == (spec.shape, spec.dtype)
            values[name] = value
    return values[model.loss]


def eager_model(source: ModelSource, dtype: torch.dtype, seed: int = 0) -> LossModule:
    torch.manual_seed(seed)
    model = source.build_model().to(dtype).train()
    return wrap_model(model, source.loss, tuple(source.example_batch(2)))


def make_batch(source: ModelSource, size: int, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(size)
    batch = source.example_batch(size)
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in batch.items()}


def assert_same_as_eager(captured: Capture, size: int, tolerance: float = 0.0) -> None:
    """Loss, every gradient and every buffer of the chain equal those of the module run eagerly."""
    source, dtype = captured.source, captured.dtype
    graph = captured.at(size)
    batch = make_batch(source, size, dtype)
    eager, chained = eager_model(source, dtype), eager_model(source, dtype)
    torch.manual_seed(5)
    expected = eager(**{name: value.clone() for name, value in batch.items()})  # a model may change its input
    expected.backward()
    torch.manual_seed(5)
    tensors = {**dict(chained.module.named_parameters()), **dict(chained.module.named_buffers())}
    actual = run_chain(graph, tensors, batch)
    actual.backward()
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
    wanted = dict(eager.module.named_parameters())
    assert list(wanted) == list(graph.parameters)
    assert set(dict(eager.module.named_buffers())) == set(graph.buffers)
    for name, parameter in chained.module.named_parameters():
        gradient = wanted[name].grad
        assert (parameter.grad is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(
                parameter.grad,
                gradient,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda m, name=name: f"{name}: {m}",
            )
    for name, buffer in chained.module.named_buffers():
        torch.testing.assert_close(
            buffer, dict(eager.module.named_buffers())[name], rtol=tolerance, atol=tolerance
        )
