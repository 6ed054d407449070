"""Checkpoints and starting weights of parallel models, on every rank; see ``world.py``."""

import torch

from autopar.runtime import checkpoint
from autopar.runtime.storage import local_tensor
from tests.runtime.bodies import Run, difference, said


def loss_scale(case):
    """An overflow under fp16, saved; the factor of a new run that loads it."""
    run = Run(case, dtype=torch.float16)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if name == "ln_f.weight":
                local_tensor(parameter).mul_(1e4)
    run.model.step(run.share())
    run.model.save(case.extra["path"])
    run.model.close()
    other = Run(case, dtype=torch.float16)
    before = other.model._loss_scale.factor
    other.model.load(case.extra["path"])
    after = other.model._loss_scale.factor
    other.model.close()
    return before, after


def overflow_then_load(case):
    """An overflow under fp16, then a checkpoint of before: whether the next step leaves gradients."""
    model, batch = (run := Run(case, dtype=torch.float16)).model, run.share()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model.save(case.extra["path"], optimizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "ln_f.weight":
                local_tensor(parameter).mul_(1e4)
    gradients = []
    for _ in range(2):
        model.step(batch)
        gradients.append(any(parameter.grad is not None for parameter in model.parameters()))
        model.load(case.extra["path"], optimizer)
    model.close()
    return gradients


def exact(case):
    """``init='exact'`` equals the plain construction bit for bit."""
    run = Run(case, init="exact", seed=7)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = run.source.build_model().state_dict()
    found = run.model.full_state_dict()
    run.model.close()
    return all(torch.equal(found[name], value.double()) for name, value in expected.items())


def optimizers(case, run, lr):
    """One, or one for what has rows and another for the rest."""
    parameters = dict(run.model.named_parameters())
    if not case.extra.get("two"):
        return [torch.optim.AdamW(parameters.values(), lr=lr)]
    with_rows = {name for name, p in parameters.items() if p.dim() > 1 and not name.endswith("bias")}
    matrices = [parameter for name, parameter in parameters.items() if name in with_rows]
    others = [parameter for name, parameter in parameters.items() if name not in with_rows]
    return [torch.optim.AdamW(matrices, lr=lr), torch.optim.AdamW(others, lr=lr)]


def update(optimizers):
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def save(case):
    """Two steps under one plan, then a checkpoint; ``case.args`` of the plan come by ``case.options``."""
    path = case.extra["path"]
    run = Run(case)
    held = optimizers(case, run, case.extra["lr"])
    for step in range(2):
        run.model.step(run.share(step))
        update(held)
    run.model.save(path, held if case.extra.get("two") else held[0])
    run.model.close()
    return True


def load(case):
    """Goes on from a checkpoint under another plan; compares with an uninterrupted single process."""
    path = case.extra["path"]
    run = Run(case, seed=1)
    held = optimizers(case, run, 1e-9)
    run.model.load(path, held)
    steps_done = run.model.num_steps
    reference = run.reference()
    expected_optimizer = torch.optim.AdamW(reference.model.parameters(), lr=case.extra["lr"])
    losses = []
    for step in range(7):
        expected = reference.step(run.micro_batches(step))
        if step >= 2:
            losses.append(abs(float(run.model.step(run.share(step))) - expected))
            update(held)
        expected_optimizer.step()
        expected_optimizer.zero_grad()
    error = difference(run.model.full_state_dict(), reference.model.state_dict())
    run.model.close()
    return {
        "steps_done": steps_done,
        "num_losses": len(losses),
        "loss": max(losses),
        "parameters": error,
    }


def load_errors(case):
    """Messages for checkpoints that do not fit."""
    run = Run(case)
    path = case.extra["path"]
    messages = [said(lambda: run.model.load("/nowhere/at/all")), said(lambda: run.model.load(path))]
    stale = torch.optim.AdamW(run.source.build_model().parameters())
    messages.append(said(lambda: run.model.save(path, stale)))
    held = optimizers(case, run, 1e-9)
    messages.append(said(lambda: run.model.save(path, [*held, *held])))
    run.model.close()
    return messages


def other_optimizers(case):
    """What a checkpoint of AdamW says to others; whether one of before loads, which named no class."""
    run = Run(case)
    path, old = case.extra["path"], case.extra["path"] + "-old"
    parameters = list(run.model.parameters())
    saved = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.3)
    run.model.step(run.share())
    update([saved])
    run.model.save(path, saved)
    classes, checkpoint._CLASSES = checkpoint._CLASSES, "training.something_else"
    run.model.save(old, saved)
    checkpoint._CLASSES = classes
    others = [torch.optim.SGD(parameters, lr=0.5), torch.optim.Adam(parameters, lr=0.5)]
    messages = [said(lambda other=other: run.model.load(path, other)) for other in others]
    untouched = all(other.param_groups[0]["lr"] == 0.5 and not other.state for other in others)
    run.model.load(path)
    rates = []
    for place in (path, old):
        again = torch.optim.AdamW(parameters, lr=0.5)
        run.model.load(place, again)
        rates.append(again.param_groups[0]["lr"])
    run.model.close()
    return {"messages": messages, "untouched": untouched, "rates": rates}
