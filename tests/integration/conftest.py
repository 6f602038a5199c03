"""Clusters of real processes for tests; none outlives its test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.launcher import THREE_DCS, LocalCluster
from cluster.namespaces import Namespaces, NamespacesUnavailable

MakeCluster = Callable[..., LocalCluster]
NAMES = ["a", "b", "c"]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Starts clusters; the arguments are LocalCluster's."""
    made: list[LocalCluster] = []

    def make(specs=THREE_DCS, *, start: bool = True, **options) -> LocalCluster:
        cluster = LocalCluster(specs, tmp_path / f"cluster{len(made)}", **options)
        made.append(cluster)
        if start:
            cluster.start()
        return cluster

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def cluster(make_cluster: MakeCluster) -> LocalCluster:
    """Three nodes in three data centers."""
    return make_cluster()


@pytest.fixture
def rounds() -> int:
    """How often a disturbance is repeated: once in `make test`, KVNODE_TEST_ROUNDS times in `make chaos`."""
    return int(os.environ.get("KVNODE_TEST_ROUNDS", "1"))


@pytest.fixture
def frozen_s() -> float:
    """How long a frozen leader stays frozen."""
    return 10.0 if "KVNODE_TEST_ROUNDS" in os.environ else 4.0


@pytest.fixture
def namespaces() -> Iterator[Namespaces]:
    """A network for each of three nodes, between which links can be cut."""
    try:
        with Namespaces(NAMES) as made:
            yield made
    except NamespacesUnavailable as error:
        pytest.skip(f"network namespaces: {error}")
