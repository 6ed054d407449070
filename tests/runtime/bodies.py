"""What the ranks of the tests do; see ``world.py``."""

import copy
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist

from autopar.lower.weight_gradients import WeightGradients
from autopar.runtime import overlap as overlapping
from autopar.runtime.options import Options
from autopar.runtime.parallel import start
from autopar.runtime.storage import local_tensor
from autopar.verify.rank import VerifyOptions, micro_batches_of, share_of, verify_rank
from autopar.verify.reference import Reference
from autopar.verify.without_dropout import without_dropout
from tests.runtime import world
from tests.runtime.plans import make_plan


def verify(case):
    """Loss and gradients of a few steps against one process."""
    source, graph = world.source_and_graph(case)
    graph, _ = without_dropout(graph)
    options = dict(case.options)
    steps = options.pop("num_steps", 2)
    asked = VerifyOptions(num_steps=steps, timeout_s=100, dtype=getattr(torch, case.dtype))
    report = verify_rank(make_plan(graph, **options), source, graph, asked)
    return None if report is None else report.to_json()


class Run:
    """A parallel model and batches for it."""

    def __init__(
        self,
        case,
        *,
        plan_changes=None,
        dtype=torch.float64,
        timeout_s=40.0,
        seed=0,
        init="seeded",
        profile=None,
    ):
        self.source, self.graph = world.source_and_graph(case)
        self.plan = make_plan(self.graph, **case.options)
        if plan_changes:
            self.plan = replace(self.plan, **plan_changes)
        self.options = Options(
            seed=seed,
            init=init,
            dtype=dtype,
            timeout_s=timeout_s,
            device=torch.device("cpu"),
            profile=profile,
        )
        self.model = start(self.plan, self.graph, self.source.build_model, self.options)

    def batch(self, index=0):
        size = self.plan.global_batch
        entries = self.source.example_batch(size)
        return {key: value.roll(index, self.graph.batch_dims.get(key, 0)) for key, value in entries.items()}

    def share(self, index=0):
        return share_of(
            self.batch(index), self.graph.batch_dims, self.model.data_rank, self.model.data_world_size
        )

    def micro_batches(self, index=0):
        return micro_batches_of(self.batch(index), self.graph.batch_dims, self.graph.micro_batch)

    def reference(self, **keywords):
        return Reference(self.source, list(self.graph.batch), **keywords)


def said(action):
    """What an action answers to a mistake."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def difference(found, expected):
    assert sorted(found) == sorted(expected), sorted(set(found) ^ set(expected))[:4]
    return max(float((found[k].to(expected[k].dtype) - expected[k]).abs().max()) for k in expected)


def clip(case):
    """The norm, the scaled gradients and the parameters after a step, against one process."""
    run = Run(case)
    reference = run.reference()
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=1e-2)
    expected_optimizer = torch.optim.AdamW(reference.model.parameters(), lr=1e-2)
    begin, expected_begin = run.model.full_state_dict(), copy.deepcopy(reference.model.state_dict())
    norms = []
    for step in range(2):
        run.model.step(run.share(step))
        reference.step(run.micro_batches(step))
        found = run.model.clip_grad_norm_(0.1)
        expected = torch.nn.utils.clip_grad_norm_(reference.model.parameters(), 0.1)
        norms.append(float((found - expected).abs() / expected))
        optimizer.step()
        expected_optimizer.step()
        optimizer.zero_grad()
        expected_optimizer.zero_grad()
    expected = reference.model.state_dict()
    error = difference(run.model.full_state_dict(), expected)
    run.model.close()
    return {
        "norm": max(norms),
        "parameters": error,
        "kept": difference(begin, expected_begin) == 0.0,
    }


def muon(case):
    """How far an update by Muon, which makes whole matrices orthogonal in bfloat16, is from one process's."""
    run = Run(case)
    reference = run.reference()
    matrices = {
        name: p
        for name, p in run.model.named_parameters()
        if name.startswith("blocks.") and p.ndim == 2 and not name.endswith("bias")
    }
    expected = {name: p for name, p in reference.model.named_parameters() if p.ndim == 2}
    before = run.model.full_state_dict()
    run.model.step(run.share())
    reference.step(run.micro_batches())
    if matrices:
        torch.optim.Muon(matrices.values(), lr=0.1).step()
    torch.optim.Muon(expected.values(), lr=0.1).step()
    after = run.model.full_state_dict()
    run.model.close()
    moved = {
        name: after[name] - before[name] for name in expected if not torch.equal(after[name], before[name])
    }
    wanted = {name: expected[name].detach() - before[name] for name in moved}
    return {name: float((moved[name] - wanted[name]).norm() / wanted[name].norm()) for name in moved}


def surface(case):
    """What a training script sees: names, losses, accumulation over steps, the plain model loaded back."""
    run = Run(case)
    reference = run.reference()
    facts = {
        "names": [name for name, _ in run.model.named_parameters()],
        "trained": [name for name, parameter in run.model.named_parameters() if parameter.requires_grad],
        "num_parameters": len(list(run.model.parameters())),
        "data": (run.model.data_rank, run.model.data_world_size),
    }
    losses = [
        run.model.step(run.share(step)) for step in range(2)
    ]  # no zero_grad in between: gradients add up
    expected = [reference.step(run.micro_batches(step)) for step in range(2)]
    facts["loss"] = [float(loss) for loss in losses]
    facts["loss_error"] = max(abs(float(a) - b) for a, b in zip(losses, expected, strict=True))
    gradients = {k: v for k, v in reference.gradients().items() if v is not None}
    facts["accumulated"] = difference(run.model.full_gradients(), gradients)
    plain = run.source.build_model().double()
    plain.load_state_dict(run.model.full_state_dict())
    facts["state"] = difference(plain.state_dict(), reference.model.state_dict())
    for parameter in run.model.parameters():
        assert parameter.grad is None or local_tensor(parameter.grad).shape == local_tensor(parameter).shape
    run.model.close()
    return facts


def pieces(case):
    """Elements that this rank holds, and those of the model."""
    run = Run(case)
    held = sum(local_tensor(parameter).numel() for parameter in run.model.parameters())
    whole = sum(parameter.numel() for parameter in run.source.build_model().parameters())
    run.model.close()
    return held, whole


def overlap(case):
    """Buckets in all, and those that were sent before the end of the last backward pass."""
    kept = overlapping._FIRST_BUCKET_BYTES, overlapping._BUCKET_BYTES
    overlapping._FIRST_BUCKET_BYTES = overlapping._BUCKET_BYTES = 4096
    try:
        run = Run(case)
    finally:
        overlapping._FIRST_BUCKET_BYTES, overlapping._BUCKET_BYTES = kept
    average = run.model._assembly.replicas[0]._average
    early = []
    finish = average.finish
    average.finish = lambda: (early.append(average._num_sent), finish())
    run.model.step(run.share())
    reference = run.reference()
    reference.step(run.micro_batches())
    gradients = {k: v for k, v in reference.gradients().items() if v is not None}
    error = difference(run.model.full_gradients(), gradients)
    run.model.close()
    return {"num_buckets": len(average._buckets), "early": early, "error": error}


def dropout(case):
    """Loss and gradients with dropout on, for comparison between plans."""
    run = Run(case)
    first = float(run.model.step(run.share()))
    gradients = {name: value.clone() for name, value in run.model.full_gradients().items()}
    drift = 0.0
    for parameter in run.model.parameters():
        if (
            parameter.grad is not None
            and run.plan.mesh.tensor > 1
            and parameter.placements[-1].is_replicate()
        ):
            mine = local_tensor(parameter.grad).clone()
            other = mine.clone()
            dist.broadcast(other, 0)
            drift = max(drift, float((mine - other).abs().max()))
    run.model.zero_grad()
    torch.manual_seed(dist.get_rank())  # what the user draws elsewhere does not disturb the model
    second = float(run.model.step(run.share()))
    run.model.close()
    checksum = {name: float(value.double().square().sum()) for name, value in gradients.items()}
    return {"first": first, "second": second, "drift": drift, "checksum": checksum}


def same_samples(case):
    """Every data rank trains on the same samples: with independent masks their gradients differ."""
    run = Run(case)
    run.model.step(run.source.example_batch(run.plan.global_batch // 2))
    losses = [None] * dist.get_world_size()
    # Before averaging, each rank's own loss: the executor of the last stage keeps none, so run one more by
    # hand.
    batches = run.source.example_batch(run.graph.micro_batch)
    seeds = run.model._seeds(0, run.plan.num_micro_batches)[0][0]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        (own,) = run.model.stages.stages[0]({}, batches, seeds)
    dist.all_gather_object(losses, float(own))
    run.model.close()
    return losses


def told_to_step(name, model, batch):
    """A step with an optimiser of torch."""
    optimizer = getattr(torch.optim, name)(model.parameters())
    optimizer.step(lambda: model.step(batch))


def step_sorted_by_dims(model, batch):
    """A step with an optimiser that shall let matrices alone decay, told by their dims."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    optimizer.step(lambda: model.step(batch))


def misuse(case):
    """Messages for what a training script can do wrong."""
    run = Run(case)
    good = run.share()
    key = next(iter(good))
    stale = torch.optim.AdamW(run.source.build_model().parameters())
    messages = {}
    messages["missing"] = said(lambda: run.model.step({k: v for k, v in good.items() if k != key}))
    messages["unknown"] = said(lambda: run.model.step({**good, "token": good[key]}))
    messages["size"] = said(lambda: run.model.step({k: v[:1] for k, v in good.items()}))
    messages["dtype"] = said(lambda: run.model.step({**good, key: good[key].float()}))
    messages["list"] = said(lambda: run.model.step({**good, key: good[key].tolist()}))
    messages["forward"] = said(lambda: run.model(good))
    messages["state"] = said(lambda: run.model.state_dict())
    messages["whole"] = said(lambda: run.model.load_state_dict({"weight": good[key]}))
    messages["half"] = said(lambda: run.model.half())
    messages["dtype of all"] = said(lambda: run.model.to(torch.float16))
    messages["memory format"] = said(lambda: run.model.to(memory_format=torch.channels_last))
    messages["device"] = said(lambda: run.model.to("meta"))
    messages["stays"] = str(run.model.to("cpu") is run.model.cpu())
    messages["copy"] = said(lambda: copy.deepcopy(run.model))
    messages["wrapped"] = said(lambda: torch.nn.parallel.DistributedDataParallel(run.model))
    for name in ("Adafactor", "LBFGS"):
        messages[name] = said(lambda name=name: told_to_step(name, run.model, good))
        run.model.zero_grad()
    messages["sorted by dims"] = said(lambda: step_sorted_by_dims(run.model, good))
    run.model.zero_grad()
    last = list(run.model.parameters())[-1].requires_grad_(False)
    messages["frozen"] = said(lambda: run.model.step(good))
    last.requires_grad_(True)
    messages["no dict"] = said(lambda: run.model.step([1, 2]))
    messages["no dict to evaluate"] = said(lambda: run.model.eval_step([1, 2]))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            messages[mode.__name__] = said(lambda: run.model.step(good))
    run.model.eval()
    messages["eval"] = said(lambda: run.model.step(good))
    run.model.train()
    run.model.step(good)
    for parameter in stale.param_groups[0]["params"]:
        parameter.grad = torch.zeros_like(parameter)
    stale.step()
    messages["stale"] = said(lambda: run.model.step(good))
    run.model.close()
    messages["close twice"] = said(run.model.close)
    for name, call in {
        "step": lambda: run.model.step(good),
        "eval_step": lambda: run.model.eval_step(good),
        "forward pass": lambda: run.model(**good),
        "clip_grad_norm_": lambda: run.model.clip_grad_norm_(1.0),
        "save": lambda: run.model.save("nowhere"),
        "full_state_dict": run.model.full_state_dict,
    }.items():
        messages[f"closed {name}"] = said(call)
    return messages


def fail(case):
    """The last rank is killed, hangs or raises in the middle of a run; the others say so."""
    run = Run(case, timeout_s=case.extra["timeout_s"])
    run.model.step(run.share())
    began_s = time.monotonic()
    if dist.get_rank() == dist.get_world_size() - 1:
        how = case.extra["how"]
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(case.extra["timeout_s"] + 12)
            return "woke up"
        if how == "raise":

            def broken(*_):
                raise ZeroDivisionError("a mistake in the model")

            run.model.stages.stages[-1].blocks[-1].forward = broken
        if how == "raise-backward":

            def broken_later(*_):
                raise ZeroDivisionError("a mistake in the model")

            WeightGradients.run = broken_later
    try:
        run.model.step(run.share())
    except Exception as error:
        return {"kind": type(error).__name__, "message": str(error), "after_s": time.monotonic() - began_s}
    return "no error"


def differing_plans(case):
    """One rank brings another plan."""
    changes = {"optimizer": "sgd"} if dist.get_rank() == 1 else {}
    return said(lambda: Run(case, plan_changes=changes))


def events(case):
    """Actions as the runtime began them, of every rank."""
    run = Run(case)
    seen = []

    def observe(action):
        seen.append(str(action))
        return nullcontext()

    run.model._assembly.executor.observer = observe
    run.model.step(run.share())
    run.model.close()
    return {"pipeline": run.model._mesh.here.pipeline, "events": seen}


def evaluated(reference, micro_batches):
    """Mean loss of the plain model in evaluation mode."""
    reference.model.eval()
    total = 0.0
    for piece in micro_batches:
        given = {key: value.double() if value.is_floating_point() else value for key, value in piece.items()}
        with torch.no_grad():
            total += float(reference._wrapped(**given)) / len(micro_batches)
    reference.model.train()
    return total


def evaluation(case):
    """``eval_step`` in between the steps of a training, against the plain model."""
    run = Run(case)
    reference = run.reference()
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=1e-2)
    expected_optimizer = torch.optim.AdamW(reference.model.parameters(), lr=1e-2)
    size = run.graph.micro_batch * case.extra["num_micro_batches"] * run.model.data_world_size
    batch = run.source.example_batch(size)
    dims = run.graph.batch_dims
    share = share_of(batch, dims, run.model.data_rank, run.model.data_world_size)
    errors, buffers, states = [], [], []
    for step in range(2):
        before = {name: value.clone() for name, value in run.model.whole_buffers()}
        state = torch.get_rng_state()
        found = run.model.eval_step(share)
        states.append(torch.equal(state, torch.get_rng_state()))
        buffers.append(difference(dict(run.model.whole_buffers()), before) if before else 0.0)
        expected = evaluated(reference, micro_batches_of(batch, dims, run.graph.micro_batch))
        errors.append(abs(float(found) - expected) / abs(expected))
        loss = run.model.step(run.share(step))
        if not case.args.get("dropout"):
            errors.append(abs(float(loss) - reference.step(run.micro_batches(step))))
            expected_optimizer.step()
            expected_optimizer.zero_grad()
            optimizer.step()
            optimizer.zero_grad()
    misuse = []
    for wrong in ({}, {key: value[:1] if value.dim() else value for key, value in share.items()}):
        try:
            run.model.eval_step(wrong)
        except Exception as error:
            misuse.append(f"{type(error).__name__}: {error}")
    assert run.model.training and run.model.stages.training
    run.model.close()
    return {"error": max(errors), "buffers": max(buffers), "rng": all(states), "misuse": misuse}


def inference_mode(case):
    """Evaluation and outputs in inference mode, from the first call on, against ``no_grad``; and training."""
    run = Run(case)
    optimizer = torch.optim.AdamW(run.model.parameters(), lr=1e-2)
    reference = run.reference()
    expected_optimizer = torch.optim.AdamW(reference.model.parameters(), lr=1e-2)
    with torch.inference_mode():
        share = {key: value.clone() for key, value in run.share().items()}

    def evaluate():
        run.model.train(False)
        outputs = run.model(on_every_rank=True, **share)
        run.model.train()
        leaf = outputs if isinstance(outputs, torch.Tensor) else next(iter(outputs.values()))
        return run.model.eval_step(share), leaf

    errors = []
    for step in range(2):
        with torch.inference_mode():
            found = evaluate()
            norm = run.model.full_state_dict()
        with torch.no_grad():
            expected = evaluate()
        assert not any(value.is_inference() for value in (*found, *norm.values()))
        errors.extend(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
        loss = run.model.step(share if step else run.share())
        errors.append(abs(float(loss) - reference.step(run.micro_batches())))
        for each in (optimizer, expected_optimizer):
            each.step()
            each.zero_grad()
    run.model.close()
    return max(errors)


def shared_buffers(case):
    """Buffers of all data ranks after steps, and after driven passes, against those of data rank 0 alone."""
    run = Run(case)
    model, reference = run.model, run.reference()

    def own():
        return {name: value.double().clone() for name, value in model._assembly.stages.named_state().items()}

    num, apart = run.plan.num_micro_batches, set()
    is_driven = case.extra.get("driven", False)
    for step in range(3):
        pieces = run.micro_batches(step)
        # Data rank 0 decides the buffers, so that one process with its micro-batches keeps the same.
        if is_driven:
            for index in range(num):
                model(**pieces[model.data_rank * num + index]).backward()
            with torch.no_grad():
                model.eval()
                said(
                    lambda given=pieces[0]: model(**given)
                )  # brings them together, and refuses to compute with them
                model.train()
        else:
            model.step(run.share(step))
        reference.step(pieces[:num])
        expected = {name: value.double() for name, value in reference.buffers().items()}
        for name, value in own().items():
            error = float((value - expected[name]).abs().max())
            apart |= {name} if error > 1e-9 else set()
    model.close()
    return sorted(apart), sorted(own())


def trace(case):
    """Three steps of which the second is recorded; whether the file was there after each of them."""
    path = case.extra["path"]
    run = Run(case, profile=path)
    found = []
    for step in range(3):
        run.model.step(run.share(step))
        dist.barrier()
        found.append(path.stat().st_mtime_ns if path.exists() else 0)
    run.model.close()
    return found
