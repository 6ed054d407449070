"""Trains the model of any plan, under ``torchrun`` or, with ``--single``, in one plain process.

    torchrun --nproc-per-node 4 examples/train.py plan.yaml --steps 1000 --save-every 100 --out run

Started again with the same ``--out``, by hand or by ``torchrun --max-restarts``, under this plan or one for
more or fewer devices, it goes on from the last complete checkpoint, with the samples that come next. The data
are a few samples from ``example_batch``: the loss falls because they are learnt by heart.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

import autopar
from autopar.capture.target import ModelSource, load_target
from autopar.capture.wrapper import wrap_model
from autopar.plan.decisions import Plan
from autopar.plan.read import read_plan
from autopar.runtime.initialise import load_initial_state
from autopar.units import format_bytes

IS_FIRST_RANK = os.environ.get("RANK", "0") == "0"
NUM_KEPT_CHECKPOINTS = 2
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "sgd-momentum": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}


def main() -> None:
    args = parse_arguments()
    plan = read_plan(args.plan)
    source = load_target(plan.model.source, plan.model.args)
    samples = Samples(source, args.num_samples or 2 * plan.global_batch, plan.global_batch, args.seed)
    is_alone = args.single or ("WORLD_SIZE" not in os.environ and plan.cluster.num_devices > 1)
    train = train_single if is_alone else train_parallel
    losses = train(plan, source, samples, args)
    if args.losses and IS_FIRST_RANK:
        Path(args.losses).write_text(json.dumps(losses))


def train_parallel(
    plan: Plan, source: ModelSource, samples: "Samples", args: argparse.Namespace
) -> list[float]:
    """This rank's part of the run under the plan."""
    if args.out:
        check_global_batch(args.out, plan)
    model = autopar.parallelize(
        source.build_model,
        plan,
        loss=source.loss,
        example_batch=source.example_batch,
        batch_dims=source.batch_dims,
        seed=args.seed,
        timeout_s=args.timeout_s,
    )
    optimizer = OPTIMIZERS[plan.optimizer](model.parameters(), lr=args.lr)
    last = last_checkpoint(args.out) if args.out else None
    if last is not None:
        model.load(last, optimizer)
        if IS_FIRST_RANK:
            print(f"going on after {model.num_steps} steps, from {last}", file=sys.stderr)
    progress = Progress(args.out, model.num_steps, plan.global_batch, args.log_every)
    for step in range(model.num_steps, args.steps):
        batch = share(samples.of_step(step), source, model.data_rank, model.data_world_size)
        loss = model.step(batch)
        model.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.note(step, loss)
        if args.out and ((step + 1) % args.save_every == 0 or step + 1 == args.steps):
            model.save(args.out / f"step-{step + 1:06}", optimizer)
            delete_old_checkpoints(args.out)
    model.close()
    dist.destroy_process_group()
    return progress.losses


def train_single(
    plan: Plan, source: ModelSource, samples: "Samples", args: argparse.Namespace
) -> list[float]:
    """The same steps with the plain model: the same micro-batches one after the other, gradients averaged."""
    if args.out:
        sys.exit("--out goes with torchrun; --single is for comparison")
    print("one plain process, float32, without the plan", file=sys.stderr)
    module = source.build_model()
    load_initial_state(module, source.build_model, args.seed)
    model = wrap_model(module, source.loss, list(source.example_batch(1)))
    optimizer = OPTIMIZERS[plan.optimizer](model.parameters(), lr=args.lr)
    num_micro_batches = plan.global_batch // plan.micro_batch
    progress = Progress(None, 0, plan.global_batch, args.log_every)
    for step in range(args.steps):
        batch = samples.of_step(step)
        total = torch.zeros(())
        for index in range(num_micro_batches):
            loss = model(**share(batch, source, index, num_micro_batches)) / num_micro_batches
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.note(step, total)
    return progress.losses


class Samples:
    """What the model learns from, in an order that the number of a step alone decides.

    Every epoch visits every sample once, in an order of its own. A run that goes on at some step, on however
    many devices, loses no sample and sees none twice. A ``Dataset`` of your own is read in the same way.
    """

    def __init__(self, source: ModelSource, num_samples: int, batch_size: int, seed: int) -> None:
        if num_samples < batch_size:
            sys.exit(f"{num_samples} samples are fewer than the {batch_size} of one step; see --num-samples")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.entries = source.example_batch(num_samples)
        self.batch_dims = source.batch_dims
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed

    def numbers_of_step(self, step: int) -> Tensor:
        """Which samples a step sees."""
        epoch, index = divmod(step, self.num_samples // self.batch_size)
        order = torch.randperm(self.num_samples, generator=torch.Generator().manual_seed(self.seed + epoch))
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def of_step(self, step: int) -> dict[str, Tensor]:
        """The global batch of a step, the same on every rank."""
        numbers = self.numbers_of_step(step)
        return {
            key: value.index_select(self.batch_dims.get(key, 0), numbers)
            for key, value in self.entries.items()
        }


def share(batch: dict[str, Tensor], source: ModelSource, index: int, count: int) -> dict[str, Tensor]:
    """One of ``count`` equal pieces of a batch."""
    return {key: value.chunk(count, source.batch_dims.get(key, 0))[index] for key, value in batch.items()}


class Progress:
    """Losses as they come: a line on the first rank, and in ``out/losses.jsonl`` one for every step."""

    def __init__(self, out: Path | None, first_step: int, batch_size: int, log_every: int) -> None:
        self.losses: list[float] = []
        self.batch_size, self.log_every = batch_size, log_every
        self.last_step, self.last_s = first_step - 1, time.perf_counter()
        self.path = out / "losses.jsonl" if out is not None else None
        if self.path is not None and IS_FIRST_RANK:
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            # Steps after the checkpoint are done again.
            write_at_once(self.path, "".join(f"{line}\n" for line in lines[:first_step]))

    def note(self, step: int, loss: Tensor) -> None:
        """Tells of a step that is done."""
        if not IS_FIRST_RANK:
            return
        self.losses.append(loss.item())
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, "loss": self.losses[-1]}) + "\n")
        if step % self.log_every == 0:
            now_s = time.perf_counter()
            per_s = (step - self.last_step) * self.batch_size / (now_s - self.last_s)
            self.last_step, self.last_s = step, now_s
            print(
                f"step {step:>4}  loss {self.losses[-1]:.6f}  {per_s:.1f} samples/s"
                f"  {format_bytes(peak_memory_bytes())}",
                flush=True,
            )


def peak_memory_bytes() -> int:
    """Of this rank's GPU, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def last_checkpoint(out: Path) -> Path | None:
    """As the first rank sees it: a network file system may show others later what is there."""
    found = [autopar.latest_checkpoint(out)]
    dist.broadcast_object_list(found)
    return found[0]


def check_global_batch(out: Path, plan: Plan) -> None:
    """The number of a step decides which samples it sees only as long as every step sees as many."""
    path = out / "global_batch"
    if path.exists() and int(path.read_text()) != plan.global_batch:
        sys.exit(
            f"the run in '{out}' has {path.read_text()} samples a step, and the plan {plan.global_batch};"
            f" plan again with --batch {path.read_text()}"
        )
    if IS_FIRST_RANK:
        out.mkdir(parents=True, exist_ok=True)
        write_at_once(path, str(plan.global_batch))


def write_at_once(path: Path, text: str) -> None:
    """Leaves the old file or the new one, whenever this process is killed."""
    new = path.with_name(f".{path.name}")
    new.write_text(text)
    new.replace(path)


def delete_old_checkpoints(out: Path) -> None:
    """Leaves the last ones."""
    if IS_FIRST_RANK:
        for folder in sorted(out.glob("step-*"))[:-NUM_KEPT_CHECKPOINTS]:
            shutil.rmtree(folder)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", help="a complete plan file")
    parser.add_argument("--steps", type=int, default=10, help="of the whole run, those before a restart too")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="checkpoints and losses; a run that has any there goes on"
    )
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--log-every", type=int, default=1, metavar="STEPS")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="of starting weights and data")
    parser.add_argument("--num-samples", type=int, help="in the data; default: two steps' worth")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="of every wait for another rank")
    parser.add_argument(
        "--single", action="store_true", help="the plain model in one process, for comparison"
    )
    parser.add_argument("--losses", metavar="FILE", help="write the losses as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
