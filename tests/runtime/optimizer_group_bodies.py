"""Optimisers whose groups are those of a rank's own layers; see ``world.py``."""

import re

import torch

from tests.runtime.bodies import Run, said


def layer_of(name):
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def rate_of(name):
    return 1e-2 * 2.0 ** -layer_of(name)


def by_layer(model, rate_of):
    """AdamW with a group for each layer that this rank has."""
    layers = {}
    for name, parameter in model.named_parameters():
        layers.setdefault(layer_of(name), []).append((name, parameter))
    groups = [
        {"params": [p for _, p in held], "lr": rate_of(held[0][0])} for _, held in sorted(layers.items())
    ]
    return torch.optim.AdamW(groups)


def rates(model, optimizer):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def save(case):
    run = Run(case)
    optimizer = by_layer(run.model, rate_of)
    run.model.step(run.share())
    optimizer.step()
    run.model.save(case.extra["path"], optimizer)
    run.model.close()


def load(case):
    """Names whose learning rate is not the one that was saved."""
    run = Run(case)
    optimizer = by_layer(run.model, lambda name: 0.5)
    run.model.load(case.extra["path"], optimizer)
    found = rates(run.model, optimizer)
    run.model.close()
    return [name for name, rate in found.items() if rate != rate_of(name)]


def refused(case):
    """What is said to other groups than those saved, and to rates by the place among a rank's own layers."""
    run = Run(case)
    model, path = run.model, case.extra["path"]
    one = torch.optim.AdamW(model.parameters())
    parameters = dict(model.named_parameters())
    two = torch.optim.AdamW([{"params": [p]} for p in parameters.values()])
    messages = [said(lambda: model.load(path, one)), said(lambda: model.load(path, two))]
    rank = torch.distributed.get_rank()
    by_place = torch.optim.AdamW(model.parameters(), lr=1e-2 / (1 + rank))
    messages.append(said(lambda: model.save(f"{path}-other", by_place)))
    model.close()
    return messages
