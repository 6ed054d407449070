"""Predicts published training runs, each with its plan pinned, and prints how far off the cost model is.

    python benchmarks/accuracy.py [--source vtrain] [--limit 40] [--rows] [--json]

Every run goes the product's own way: a model file is captured, the plan that ran is pinned and resolved, and
its step is predicted from the cost model of its device; no solver takes part. The table stands on stdout,
progress on stderr. Runs and their sources: ``published/runs.csv``; software that eager PyTorch is not:
``published/software.yaml``.

The constants of the A100 and H100 were fitted on these runs, then rounded. Refitted by least squares
(products, memory-bound operators, attention, data axis) on half of the models of the FSDP runs, they predict
that half within 1.8-2.6% and the other half within 3.1-6.5%; for Megatron's, 2.7-4.1% and 3.2-4.3%.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from published.express import reason_not_expressed
from published.layers import layer_errors, memory_errors
from published.links import link_errors
from published.predict import Predicted, Predictor
from published.runs import Run, read_runs
from published.summary import Scores, SourceSummary, summarise


def main() -> None:
    """Predicts what was asked for and prints it."""
    options = _options()
    runs = _selected(read_runs(), options.source, options.limit)
    expressible = [run for run in runs if reason_not_expressed(run) is None]
    predicted = _predict(expressible)
    sources = dict.fromkeys(run.source for run in runs)
    summaries = [summarise(source, runs, predicted) for source in sources]
    if options.json:
        print(json.dumps([asdict(s) for s in summaries], indent=1))
        return
    if options.rows:
        _print_rows(predicted)
    _print_summaries(summaries)
    if not options.source:
        _print_parts()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", help="only sources whose name contains this, in any case")
    parser.add_argument(
        "--limit", type=int, help="at most so many runs a source, whole sweeps, spread evenly"
    )
    parser.add_argument("--rows", action="store_true", help="also print every run")
    parser.add_argument("--json", action="store_true", help="print the summaries as JSON, and nothing else")
    return parser.parse_args()


def _selected(runs: Sequence[Run], source: str | None, limit: int | None) -> list[Run]:
    """Runs of the sources asked for; under a limit, sweeps at even distances."""
    chosen = [run for run in runs if not source or source.lower() in run.source.lower()]
    if limit is None:
        return chosen
    kept: list[Run] = []
    for name in dict.fromkeys(run.source for run in chosen):
        mine = [run for run in chosen if run.source == name]
        sweeps = list(dict.fromkeys(run.sweep for run in mine))
        every = max(1, round(len(mine) / limit))
        wanted = set(sweeps[::every])
        kept += [run for run in mine if run.sweep in wanted]
    return kept


def _predict(runs: Sequence[Run]) -> list[Predicted]:
    predicted: list[Predicted] = []
    start = time.perf_counter()
    for one in Predictor().all_of(runs):
        predicted.append(one)
        if len(predicted) % 50 == 0 or len(predicted) == len(runs):
            spent = time.perf_counter() - start
            print(f"{len(predicted)} of {len(runs)} runs, {spent:.0f} s", file=sys.stderr)
    return predicted


def _print_rows(predicted: Sequence[Predicted]) -> None:
    print(f"{'run':52}{'measured s':>12}{'predicted s':>12}{'error':>8}{'GiB':>8}  compute / comm / idle s")
    for p in predicted:
        print(
            f"{p.run.id:52}{p.run.step_s:12.3f}{p.step_s:12.3f}{p.step_s / p.run.step_s - 1:8.1%}"
            f"{p.peak_memory_bytes / 2**30:8.1f}  {p.compute_s:.3f} / {p.comm_s:.3f} / {p.idle_s:.3f}"
        )
    print()


def _print_summaries(summaries: Sequence[SourceSummary]) -> None:
    heads = ("n/rows", "MAPE", "bias", "scaled", "x", "sweeps", "Spearman", "regret", "memory")
    _print_line("source", *heads)
    for s in summaries:
        count, sweeps = f"{s.num_expressed}/{s.num_runs}", str(s.num_sweeps or "-")
        memory = f"{_number(s.memory_error, '.1%')} ({s.num_memory})" if s.num_memory else "-"
        _print_line(s.source, count, *_cells(s.ours, sweeps), memory)
        _print_line("  trivial model", "", *_cells(s.trivial, ""))
        for reason, rows in s.not_expressed.items():
            print(f"  not expressed: {rows} x {reason}")


def _cells(scores: Scores | None, sweeps: str) -> tuple[str, ...]:
    if scores is None:
        return ("-",) * 7
    return (
        f"{scores.error:.1%}",
        f"{scores.bias:+.1%}",
        f"{scores.scaled_error:.1%}",
        f"{scores.factor:.3f}",
        sweeps,
        _number(scores.spearman, ".2f"),
        _number(scores.pick_regret, ".1%"),
    )


def _print_line(first: str, *cells: str) -> None:
    print(f"{first[:45]:46}" + "".join(f"{cell:>11}" for cell in cells))


def _print_parts() -> None:
    print("\nKorthikanti et al. 2022, one layer of the 22B model, ms")
    for error in layer_errors():
        print(f"  {error}")
    print("Korthikanti et al. 2022, formula for activations of the first stage, GiB")
    for error in memory_errors():
        print(f"  {error}")
    print("All-reduces (nccl-tests): mean error and bias")
    for line in link_errors():
        print(f"  {line}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


if __name__ == "__main__":
    main()
