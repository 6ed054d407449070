"""Trains the model of any plan, under ``torchrun`` or, with ``--single``, in one plain process.

    torchrun --nproc-per-node 4 examples/train.py plan.yaml --steps 10

Both ways start from the same weights and see the same samples, so their losses can be laid side by side. The
data are a few fixed batches from ``example_batch``: the loss falls because they are learnt by heart.
"""

import argparse
import json
import os
import sys
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

NUM_BATCHES = 2
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
    is_alone = args.single or ("WORLD_SIZE" not in os.environ and plan.cluster.num_devices > 1)
    losses = train_single(plan, source, args) if is_alone else train_parallel(plan, source, args)
    if args.losses and int(os.environ.get("RANK", "0")) == 0:
        Path(args.losses).write_text(json.dumps(losses))


def train_parallel(plan: Plan, source: ModelSource, args: argparse.Namespace) -> list[float]:
    """This rank's part of the run under the plan."""
    model = autopar.parallelize(
        source.build_model,
        plan,
        loss=source.loss,
        example_batch=source.example_batch,
        batch_dims=source.batch_dims,
        seed=args.seed,
    )
    optimizer = OPTIMIZERS[plan.optimizer](model.parameters(), lr=args.lr)
    if args.load:
        model.load(args.load, optimizer)
    losses = []
    first = model.num_steps
    for step in range(first, first + args.steps):
        batch = global_batch(plan, source, args.seed, step)
        losses.append(model.step(share(batch, source, model.data_rank, model.data_world_size)).item())
        model.clip_grad_norm_(1.0)
        optimizer.step()
        optimizer.zero_grad()
        tell(step, losses[-1])
    if args.save:
        model.save(args.save, optimizer)
    model.close()
    dist.destroy_process_group()
    return losses


def train_single(plan: Plan, source: ModelSource, args: argparse.Namespace) -> list[float]:
    """The same steps with the plain model: the same micro-batches one after the other, gradients averaged."""
    if args.save or args.load:
        sys.exit("--save and --load go with torchrun; --single is for comparison")
    print("one plain process, float32, without the plan", file=sys.stderr)
    module = source.build_model()
    load_initial_state(module, source.build_model, args.seed)
    model = wrap_model(module, source.loss, list(source.example_batch(1)))
    optimizer = OPTIMIZERS[plan.optimizer](model.parameters(), lr=args.lr)
    num_micro_batches = plan.global_batch // plan.micro_batch
    losses = []
    for step in range(args.steps):
        batch = global_batch(plan, source, args.seed, step)
        total = 0.0
        for index in range(num_micro_batches):
            loss = model(**share(batch, source, index, num_micro_batches)) / num_micro_batches
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
        tell(step, total)
    return losses


def global_batch(plan: Plan, source: ModelSource, seed: int, step: int) -> dict[str, Tensor]:
    """All samples of a step, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + step % NUM_BATCHES)
        return source.example_batch(plan.global_batch)


def share(batch: dict[str, Tensor], source: ModelSource, index: int, count: int) -> dict[str, Tensor]:
    """One of ``count`` equal pieces of a batch."""
    return {key: value.chunk(count, source.batch_dims.get(key, 0))[index] for key, value in batch.items()}


def tell(step: int, loss: float) -> None:
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"step {step:>4}  loss {loss:.6f}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", help="a complete plan file")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0, help="of starting weights and data")
    parser.add_argument(
        "--save", metavar="DIR", help="write a checkpoint at the end; it loads under any plan"
    )
    parser.add_argument("--load", metavar="DIR", help="start from a checkpoint")
    parser.add_argument(
        "--single", action="store_true", help="the plain model in one process, for comparison"
    )
    parser.add_argument("--losses", metavar="FILE", help="write the losses as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
