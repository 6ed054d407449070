"""Training in bf16 and fp16, on every rank; see ``world.py``."""

import torch
import torch.distributed as dist

from tests.runtime.bodies import Run, difference


def half(case):
    """bf16 compute against float32: dtypes, and closeness of loss and gradients."""
    run = Run(case, dtype=getattr(torch, case.dtype))
    loss = run.model.step(run.share())
    dtypes = sorted(
        {str(p.dtype) for p in run.model.parameters()} | {str(p.grad.dtype) for p in run.model.parameters()}
    )
    reference = run.reference(dtype=torch.float32)
    expected = reference.step(run.micro_batches())
    found = run.model.full_gradients()
    scale = max(float(v.abs().max()) for v in reference.gradients().values())
    error = difference(found, reference.gradients()) / scale
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=1e-3)
    optimizer.step()
    optimizer.zero_grad()
    after = run.model.step(run.share())
    run.model.close()
    return {
        "dtypes": dtypes,
        "loss": abs(float(loss) - expected) / expected,
        "gradient": error,
        "falls": float(loss - after),
    }


def overflow_between(case):
    """Three steps in fp16 before an update; gradients of the second overflow on one stage."""
    run = Run(case, dtype=torch.float16)
    model = run.model
    parameters = dict(model.named_parameters())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    gradients = []
    for factor in (1.0, 1e4, 1.0):
        if "ln_f.weight" in parameters:
            with torch.no_grad():
                parameters["ln_f.weight"].copy_(before["ln_f.weight"] * factor)
        model.step(run.share())
        gradients.append(any(value.grad is not None for value in parameters.values()))
    optimizer.step()
    changed = difference(parameters, before)
    optimizer.zero_grad()
    model.step(run.share())
    gradients.append(any(value.grad is not None for value in parameters.values()))
    model.close()
    return {"gradients": gradients, "changed": changed, "factor": model._loss_scale.factor}


def overflow(case):
    """A weight so large that fp16 gradients overflow on one stage."""
    run = Run(case, dtype=torch.float16)
    parameters = dict(run.model.named_parameters())
    if dist.get_rank() == 1:
        with torch.no_grad():
            parameters["ln_f.weight"].mul_(1e4)
    before = {name: value.detach().clone() for name, value in parameters.items()}
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=1e-2)
    factors = [run.model._loss_scale.factor]
    run.model.step(run.share())
    factors.append(run.model._loss_scale.factor)
    gradients = sum(value.grad is not None for value in parameters.values())
    optimizer.step()
    run.model.close()
    return {"factors": factors, "gradients": gradients, "changed": difference(parameters, before)}
