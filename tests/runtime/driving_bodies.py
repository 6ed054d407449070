"""Models driven like modules, on every rank; see ``world.py``."""

import torch
import torch.distributed as dist

from autopar.capture.wrapper import compute_in
from tests.runtime.bodies import Run, difference, said


def leaf_of(output):
    """The tensor from which the user makes his own loss."""
    return output if isinstance(output, torch.Tensor) else output["logits"]


def loss_of(case, output):
    """The user's own loss, which is not the captured one; or the module's."""
    if case.extra.get("loss") == "module":
        return output if isinstance(output, torch.Tensor) else output["loss"]
    return leaf_of(output).square().mean() * 3


def plain_outputs(case, reference, batches):
    """Of the plain module, for the entries that a user gives it."""
    keys = case.extra["inputs"]
    found = []
    with compute_in(torch.float64):
        for batch in batches:
            given = {
                key: value.double() if value.is_floating_point() else value for key, value in batch.items()
            }
            found.append(reference.model(**{key: given[key] for key in keys}))
    return found


def given_entries(case, batch):
    keys = case.extra["inputs"] if case.extra.get("without_labels") else batch
    return {key: batch[key] for key in keys}


def drive(case):
    """Two updates of a driven model, each after several backward passes, against one process."""
    run = Run(case)
    reference, model = run.reference(), run.model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    expected_optimizer = torch.optim.SGD(reference.model.parameters(), lr=1e-2, momentum=0.9)
    num = run.plan.num_micro_batches
    losses, gradients = [], []
    for step in range(2):
        batches = run.micro_batches(step)
        expected = plain_outputs(case, reference, batches)
        wanted_losses = [loss_of(case, output) for output in expected]
        (sum(wanted_losses) / len(batches)).backward()
        for index in range(num):
            place = model.data_rank * num + index
            output = model(**given_entries(case, batches[place]))
            assert type(output) is type(expected[place])
            loss = loss_of(case, output)
            wanted_loss = wanted_losses[place].item()
            losses.append(abs(loss.item() - wanted_loss) / abs(wanted_loss))
            if index < num - 1 and case.extra.get("no_sync"):
                with model.no_sync():
                    (loss / num).backward()
            else:
                (loss / num).backward()
        found = model.full_gradients()
        wanted = {name: p.grad for name, p in reference.model.named_parameters() if p.grad is not None}
        scale = max(float(value.abs().max()) for value in wanted.values())
        gradients.append(difference(found, wanted) / scale)
        for each in (optimizer, expected_optimizer):
            each.step()
            each.zero_grad()
    plain = reference.model.state_dict()
    if model.data_world_size > 1:  # statistics are each data rank's own
        plain = {name: plain[name] for name in plain if name not in reference.buffers()}
    found = {name: value for name, value in model.full_state_dict().items() if name in plain}
    facts = {"loss": max(losses), "gradient": max(gradients), "parameters": difference(found, plain)}
    facts["steps"] = model.num_steps
    model.close()
    return facts


def flat(output):
    """The tensors of an output, and its structure."""
    if isinstance(output, torch.Tensor):
        return {"": output}
    return {key: value for key, value in output.items() if value is not None}


def infer(case):
    """Outputs alone, in both modes, of several micro-batches at once, against the plain module."""
    run = Run(case)
    reference, model = run.reference(), run.model
    size = run.graph.micro_batch * 3
    batch = run.source.example_batch(size)
    dims = run.graph.batch_dims
    pieces = [
        {key: value.chunk(3, dims.get(key, 0))[index] for key, value in batch.items()} for index in range(3)
    ]
    is_last = bool(model.stages._by_index and max(model.stages._by_index) == run.plan.mesh.pipeline * (
        run.plan.virtual or 1
    ) - 1)  # fmt: skip
    errors, nothing = [], []
    for mode in ("eval", "train"):
        getattr(model, mode)()
        getattr(reference.model, mode)()
        with torch.no_grad():
            expected = [flat(output) for output in plain_outputs(case, reference, pieces)]
            own = model(**given_entries(case, batch))
            everywhere = model(on_every_rank=True, **given_entries(case, batch))
        if mode == "train":  # twice: BatchNorm's statistics
            with torch.no_grad():
                plain_outputs(case, reference, pieces)
        nothing.append((own is None) == (not is_last))
        for found in (own, everywhere):
            if found is None:
                continue
            for key, value in flat(found).items():
                whole = [each[key] for each in expected]
                dim = case.extra.get("dim", 0)
                joined = torch.stack(whole).mean() if value.dim() == 0 else torch.cat(whole, dim)
                errors.append(float((value - joined).abs().max()))
            assert not any(value.requires_grad for value in flat(found).values())
    buffers = {name: value for name, value in model.whole_buffers() if value is not None}
    known = reference.buffers()
    statistics = difference(buffers, {name: known[name] for name in buffers}) if buffers else 0.0
    model.close()
    return {"error": max(errors), "nothing": all(nothing), "statistics": statistics}


def dropout(case):
    """Masks of a driven model are those of a step, evaluated in between or not, and repeated by recompute."""
    run = Run(case)
    model, num = run.model, run.plan.num_micro_batches
    model.step(run.share())
    expected = {name: value.clone() for name, value in model.full_gradients().items()}
    model.zero_grad()
    model.num_steps = 0
    pieces = run.micro_batches()
    total = 0.0
    for index in range(num):
        batch = pieces[model.data_rank * num + index]
        model.eval()
        with torch.no_grad():
            model(**batch)
        model.train()
        torch.manual_seed(dist.get_rank())  # what the user draws elsewhere does not disturb the model
        loss = run.source.loss(model(**batch), batch)
        (loss / num).backward()
        total += loss.item()
    error = difference(model.full_gradients(), expected)
    model.eval()
    batch = pieces[0]
    with torch.no_grad():
        same = torch.equal(leaf_of(model(**batch)), leaf_of(model(**batch)))
    model.close()
    return {"error": error, "same": same}


def half(case):
    """Two forward passes in half precision before their one backward pass, twice, near float32."""
    dtype = getattr(torch, case.dtype)
    run = Run(case, dtype=dtype)
    model, reference = run.model, run.reference(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    expected_optimizer = torch.optim.SGD(reference.model.parameters(), lr=1e-2)
    errors = []
    for step in range(2):
        batches = run.micro_batches(step)
        for batch in batches:
            (run.source.loss(reference.model(batch["tokens"]), batch) / len(batches)).backward()
        own = [batches[model.data_rank * 2 + index] for index in range(2)]
        outputs = [model(**batch) for batch in own]
        assert outputs[0].dtype is (torch.float32 if dtype is torch.float16 else dtype)
        total = sum(run.source.loss(x.float(), batch) for x, batch in zip(outputs, own, strict=True))
        (total / 2).backward()
        wanted = reference.gradients()
        scale = max(float(value.abs().max()) for value in wanted.values())
        errors.append(difference(model.full_gradients(), wanted) / scale)
        for each in (optimizer, expected_optimizer):
            each.step()
            each.zero_grad()
    model.close()
    return max(errors)


def overflow(case):
    """Two backward passes in fp16 before each update; in the first one's, a gradient overflows."""
    run = Run(case, dtype=torch.float16)
    model, batches = run.model, run.micro_batches()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    before = {name: value.clone() for name, value in model.full_state_dict().items()}
    facts = {"gradients": [], "factors": [], "changed": []}
    for blow_up in (1e9, 1.0):
        for index in range(2):
            batch = batches[model.data_rank * 2 + index]
            loss = run.source.loss(model(**batch), batch)
            (loss * (blow_up if index == 0 and dist.get_rank() == 1 else 1.0)).backward()
        facts["gradients"].append(sum(p.grad is not None for p in model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
        facts["factors"].append(model._loss_scale.factor)
        facts["changed"].append(difference(model.full_state_dict(), before))
    facts["num_parameters"], facts["steps"] = len(list(model.parameters())), model.num_steps
    model.close()
    return facts


def without_backward(case):
    """A forward pass whose outputs are dropped, then an update: later outputs are of the new parameters."""
    run = Run(case)
    model, batch = run.model, run.micro_batches()[0]
    loss_of(case, model(**batch)).backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.step()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    model(**batch)
    optimizer.step()
    with torch.no_grad():
        found = model(**batch)
        plain = run.source.build_model().double()
        plain.load_state_dict(model.full_state_dict())
        error = float((found - plain(batch["tokens"])).abs().max())
    model.close()
    return error


def two_outputs(case):
    """An output that the captured loss reads, and one that it does not."""
    run = Run(case)
    reference, model = run.reference(), run.model
    batch = run.micro_batches()[0]
    with torch.no_grad():
        found = model(**given_entries(case, batch), on_every_rank=True)
        wanted = plain_outputs(case, reference, [batch])[0]
    assert list(found) == list(wanted)
    facts = {
        "error": float((found["logits"] - wanted["logits"]).abs().max()),
        "used": said(lambda: found["features"].mean()),
    }
    model.close()
    return facts


def misuse(case):
    """What a driven model says to mistakes."""
    run = Run(case)
    model = run.model
    batch = run.micro_batches()[0]
    messages = {}

    messages["position"] = said(lambda: model(batch["tokens"]))
    messages["missing"] = said(lambda: model(labels=batch["labels"]))
    messages["unknown"] = said(lambda: model(**batch, token=batch["tokens"]))
    messages["size"] = said(lambda: model(**{key: value[:1] for key, value in batch.items()}))
    messages["pipeline"] = said(lambda: model(**batch))
    if run.plan.mesh.pipeline == 1:
        loss = model(**batch).mean()
        loss.backward(retain_graph=True)
        messages["twice"] = said(loss.backward)
    model.close()
    return messages
