"""Seeds of the whole cluster, as `make sim` runs them, and a few planted bugs, as `make mutants` does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.mutants import MUTANTS, TESTED, hunt
from tests.simulation.pinned import pinned_seeds
from tests.simulation.run import describe, run_seeds

SEEDS = 200
PROCESSES = 2
_TRACE = (
    "from tests.simulation.seed import run_seed; r = run_seed({seed}); print(r.trace, r.operations_count, r.virtual_s)"
)


@pytest.mark.timeout(1_800)  # some 600 s beside all other tests, to which it yields; far more on a busy machine
def test_every_seed_keeps_every_promise() -> None:
    seeds = list(dict.fromkeys([*pinned_seeds(), *range(SEEDS)]))
    results = list(run_seeds(seeds, PROCESSES))
    failures = [describe(result) for result in results if not result.ok]
    assert not failures, "\n".join(failures)
    assert sum(result.snapshots_count for result in results) > 10
    assert sum(result.acknowledged_count for result in results) > 20 * SEEDS
    both = [result for result in results if result.kinds[-1] == "failovers" and "+queues" in result.kinds[0]]
    assert len(both) > 5
    promoted = [event for result in results for event in result.events if "promoted by ballot: [" in event]
    assert any(not event.endswith("[]") for event in promoted), promoted


@pytest.mark.parametrize("seed", [6, 12, 26, 104])  # the first and the third have queues, the last failovers too
def test_a_seed_always_runs_the_same(seed: int) -> None:
    """The same trace in processes whose hashes and memory layout differ."""
    traces = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", _TRACE.format(seed=seed)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        traces.add(done.stdout)
    assert len(traces) == 1


def test_every_planted_bug_fits_what_it_changes() -> None:
    """Or `make mutants`, which takes long and is run seldom, would find out."""
    plants = [*MUTANTS.values(), *(plant for plant, _ in TESTED.values())]
    for plant in plants:
        with plant():
            pass
    assert len(plants) > 80


# With the seed at which its hunt begins here: the one that caught it last, so that it is over soon. After a change of
# the harness another one may; `make mutants` hunts from the first.
@pytest.mark.parametrize(
    ("mutant", "start"),
    [
        ("acknowledge_before_fsync", 0),
        ("resolve_before_the_no_op", 0),
        ("skip_the_overlay", 0),
        ("strong_reads_without_read_index", 6),
        ("drop_what_a_dead_consumer_held", 4),
        ("send_a_claim_before_it_is_committed", 4),
        ("fire_again_with_each_leader", 4),
        ("count_the_lease_from_the_receipt", 39),
        ("vote_while_the_grant_lives", 54),
    ],
)
def test_a_planted_bug_is_found(mutant: str, start: int) -> None:
    assert hunt(mutant, max_seeds=30, start=start).checker
