"""The collector of a server that is up."""

from __future__ import annotations

import gc
import subprocess
import sys

SCRIPT = """
import gc
from kvnode.base.garbage import settle
import kvnode.api.serve  # what a server has loaded

cycle = []
cycle.append(cycle)
del cycle
settle()
assert gc.get_freeze_count() > 30_000, gc.get_freeze_count()
found = len(gc.get_objects())
assert found < 1_000, f"{found} objects are still looked at"

class Left:
    alive = 0
    def __init__(self):
        self.me = self
        Left.alive += 1
    def __del__(self):
        Left.alive -= 1

most = 0
for _ in range(100_000):
    Left()
    most = max(most, Left.alive)
assert most <= 10_100, f"{most} in cycles at once"
"""


def test_what_is_there_is_left_alone_and_new_cycles_are_still_freed() -> None:
    assert gc.isenabled()
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, timeout=60)


LOADING = """
import gc, runpy, sys
collections = []
gc.callbacks.append(lambda phase, info: collections.append(info["generation"]) if phase == "start" else None)
sys.argv = ["kvnode", "serve", "--help"]
try:
    runpy.run_module("kvnode", run_name="__main__")
except SystemExit:
    pass
import kvnode.api.serve
assert len(collections) < 10, collections  # those before the command begins; it was 120
"""


def test_nearly_nothing_is_collected_while_a_node_is_loaded() -> None:
    subprocess.run([sys.executable, "-c", LOADING], check=True, timeout=60, stdout=subprocess.DEVNULL)
