"""The long run: ``python -m tests.differential --count 2000``; prints every failing case."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.differential.cases import run_trials, trial_of
from tests.differential.shrink import shrink

_AT_ONCE = 20


def main() -> int:
    """Runs the seeds asked for; the exit status says whether any failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="cases (default: 200)")
    parser.add_argument("--start", type=int, default=0, help="first seed (default: 0)")
    parser.add_argument("--shrink", action="store_true", help="make failing cases small, too")
    args = parser.parse_args()
    worst, failed, began_s = 0.0, [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = range(args.start, args.start + args.count)
        for begin in range(0, args.count, _AT_ONCE):
            trials = [trial_of(seed) for seed in seeds[begin : begin + _AT_ONCE]]
            for outcome in run_trials(trials, folder):
                if outcome.problem:
                    failed.append(outcome.trial.seed)
                    print(outcome, flush=True)
                    if args.shrink:
                        print("made small:", shrink(outcome, folder), flush=True)
                else:
                    worst = max(worst, outcome.error)
            done, spent_s = begin + len(trials), time.monotonic() - began_s
            print(
                f"{done} cases, {len(failed)} failed {failed}, worst error {worst:.1e}, {spent_s:.0f} s",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
