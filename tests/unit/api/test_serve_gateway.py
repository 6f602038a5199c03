"""What a gateway makes of its configuration."""

from __future__ import annotations

import pytest

from kvnode.api.serve_gateway import _static_token
from kvnode.base.config import load_config


@pytest.mark.parametrize(
    ("shown_to_nodes", "good_for_clients"),
    [("a-token-of-the-users-own", "a-token-of-the-users-own"), ("kvn_abcdefgh_" + "a" * 40, ""), ("", "")],
)
def test_a_token_that_the_cluster_made_is_a_gateways_towards_the_nodes_alone(
    shown_to_nodes: str, good_for_clients: str
) -> None:
    flags = {"role": "gateway", "peers": "node:4510", "access_token": shown_to_nodes}
    assert _static_token(load_config(flags, {}).config) == good_for_clients
