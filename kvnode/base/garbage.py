"""When the cyclic garbage collector runs, in a command and in a server.

Nearly all that is made for one request is freed by its reference count; what lives as long as the process are the many
thousand objects of modules and libraries. CPython's collector knows neither: under load it walks through all
of them about once a second, and for 40 to 70 ms the event loop stands still. So what is there once a node serves is
taken out of its sight, and it looks less often at what has come since, for the cycles that exceptions and libraries
leave. While modules are loaded it does not look at all: nothing that they make is garbage, and walking through it again
and again took 7 % of that time.
"""

from __future__ import annotations

import gc

LOADED_OBJECTS_COUNT = 100_000  # more than the modules of a node make
YOUNG_OBJECTS_COUNT = 10_000  # new ones before the youngest generation is looked at: some 2 MB at the most
YOUNG_COLLECTIONS_COUNT = 20  # before the middle one is
MIDDLE_COLLECTIONS_COUNT = 100  # before the oldest one may be


def begin() -> None:
    """Do not look while modules are loaded, and then less often: for a command's first moment."""
    gc.set_threshold(LOADED_OBJECTS_COUNT, YOUNG_COLLECTIONS_COUNT, MIDDLE_COLLECTIONS_COUNT)


def settle() -> None:
    """Collect once, and leave alone from here on what is still there."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_COUNT, YOUNG_COLLECTIONS_COUNT, MIDDLE_COLLECTIONS_COUNT)
