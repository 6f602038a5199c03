"""Run seeds: `python -m tests.simulation.run --seeds 200 --start 0`, or one, with its events: `--seed 17`.

Seeds that once failed stand in seeds.txt and run first.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sys
import time
from collections.abc import Iterator

from tests.simulation.pinned import pinned_seeds
from tests.simulation.quiet import quiet
from tests.simulation.seed import Result, run_seed

REPLAY = ".venv/bin/python -m tests.simulation.run --seed {seed}"


def run_seeds(seeds: list[int], processes: int) -> Iterator[Result]:
    """Results as they come."""
    if processes <= 1 or len(seeds) <= 1:
        yield from map(_run, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(processes, initializer=_set_modules_aside) as pool:
        yield from pool.imap_unordered(_run, seeds, chunksize=1)


def _set_modules_aside() -> None:
    """What is imported stays: the collection of garbage that ends each seed need not look at it."""
    gc.collect()
    gc.freeze()


def _run(seed: int) -> Result:
    try:
        with quiet():
            return run_seed(seed)
    except Exception as error:
        return Result(seed, "crashed", f"{type(error).__name__}: {error}")


def describe(result: Result) -> str:
    """A failure, and how to see it again."""
    return (
        f"seed {result.seed} FAILED [{result.checker}] {result.message}\n"
        f"  layout and trouble: {' '.join(result.kinds)}; at {result.virtual_s:.2f} s\n"
        f"  replay: {REPLAY.format(seed=result.seed)}"
    )


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, beside the pinned ones")
    parser.add_argument("--start", type=int, default=0, help="the first")
    parser.add_argument("--seed", type=int, help="only this one, told at length")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return _replay(arguments.seed)
    seeds = list(dict.fromkeys([*pinned_seeds(), *range(arguments.start, arguments.start + arguments.seeds)]))
    began = time.monotonic()
    failures: list[Result] = []
    operations = commits = installs = 0
    virtual_s = 0.0
    for done, result in enumerate(run_seeds(seeds, arguments.processes), 1):
        operations += result.operations_count
        commits += result.committed_count
        installs += result.snapshots_count
        virtual_s += result.virtual_s
        if not result.ok:
            failures.append(result)
            print(describe(result), flush=True)
        if sys.stderr.isatty():
            print(f"\r{done}/{len(seeds)} seeds, {len(failures)} failed", end="", file=sys.stderr, flush=True)
    print(
        f"{len(seeds) - len(failures)} of {len(seeds)} seeds passed: {operations} operations, {commits} entries, "
        f"{installs} snapshots installed, {virtual_s / 60:.0f} simulated minutes in {time.monotonic() - began:.0f} s"
    )
    return 1 if failures else 0


def _replay(seed: int) -> int:
    result = run_seed(seed)
    for event in result.events:
        print(" ", event)
    print(f"trace {result.trace}")
    if not result.ok:
        print(describe(result))
        return 1
    print(f"seed {seed} passed: {result.operations_count} operations in {result.virtual_s:.1f} simulated seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
