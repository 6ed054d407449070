"""Optimisers of torch on the pieces of a parallel model, on every rank; see ``world.py``."""

import torch

from tests.runtime.bodies import Run, difference, said

MAKE = {
    "Rprop": lambda parameters: torch.optim.Rprop(parameters, lr=1e-3),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, fused=True),
    "Adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=1e-2, fused=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, eps=1e-3, fused=True),
}


def updates(case):
    """By optimiser: how far two updates are from those of one process, or what is said to it."""
    return {name: two_updates(case, make) for name, make in MAKE.items()}


def two_updates(case, make):
    run = Run(case)
    reference = run.reference()
    optimizer, expected = make(list(run.model.parameters())), make(list(reference.model.parameters()))

    def update():
        run.model.step(run.share())
        optimizer.step()
        optimizer.zero_grad()

    messages = [said(update) for _ in range(2)]
    for _ in range(2):
        reference.step(run.micro_batches())
        expected.step()
        expected.zero_grad()
    error = difference(run.model.full_state_dict(), reference.model.state_dict())
    run.model.close()
    return error if messages == ["no error"] * 2 else messages[0]
