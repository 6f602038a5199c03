"""What denokv's users bring along."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.base.config import KEYS, load_config
from kvnode.base.denokv import FOREIGN_NAMES
from kvnode.base.errors import ConfigError

TOKEN = "0123456789ab"
MADE = "kvn_2bunvqpk_d76yx5wv53f6z3ocjbcj3cace5ajhy47thni63iq"


def test_its_names_mean_ours_and_ours_are_stronger() -> None:
    loaded = load_config({}, {"DENO_KV_ACCESS_TOKEN": TOKEN, "DENO_KV_ADDR": "127.0.0.1:4999"})
    assert loaded.config.access_token == TOKEN
    assert loaded.config.connect_listen == "127.0.0.1:4999"
    assert loaded.origins["access_token"] == "environment (DENO_KV_*)"
    ours = load_config({}, {"DENO_KV_ACCESS_TOKEN": TOKEN, "KVNODE_ACCESS_TOKEN": TOKEN + "c"})
    assert ours.config.access_token == TOKEN + "c"


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("DENO_KV_SQLITE_PATH", "kvnode import"),
        ("DENO_KV_READ_ONLY", "--mode read-only"),
        ("DENO_KV_S3_BUCKET", "replicate"),
        ("DENO_KV_SYNC_FROM_S3", "replicate"),
    ],
)
def test_what_cannot_be_honoured_says_what_to_do(variable: str, says: str) -> None:
    with pytest.raises(ConfigError, match=variable) as refused:
        load_config({}, {variable: "1"})
    assert says in refused.value.message


def test_what_nobody_will_miss_is_mentioned() -> None:
    loaded = load_config({}, {"DENO_KV_NUM_WORKERS": "4", "DENO_KV_READ_ONLY": "false"})
    assert len(loaded.notices) == 2
    assert "DENO_KV_NUM_WORKERS" in " ".join(loaded.notices)
    assert not load_config({}, {"DENO_KV_SOMETHING": "1", "DENO_KV_NUM_WORKERS": ""}).notices


@pytest.mark.parametrize("token", ["short", "with a space in it", "tab\tinside-it-", "ünicode-is-no-good"])
def test_a_static_token_that_will_not_do(token: str) -> None:
    with pytest.raises(ConfigError, match="access_token") as refused:
        load_config({"access_token": token}, {})
    assert token not in refused.value.message


@pytest.mark.parametrize("role", [{}, {"role": "gateway", "peers": "node:4510"}])
def test_a_token_that_the_cluster_made_is_the_clients_and_is_left_aside(role: dict[str, str]) -> None:
    """The variable is documented for clients, and is often set in the shell where a node or gateway is started."""
    loaded = load_config(role, {"DENO_KV_ACCESS_TOKEN": MADE})
    assert loaded.config.access_token == ""
    assert loaded.origins["access_token"] == "default"
    (notice,) = loaded.notices
    assert "DENO_KV_ACCESS_TOKEN" in notice and MADE not in notice
    ours = load_config(role, {"DENO_KV_ACCESS_TOKEN": MADE, "KVNODE_ACCESS_TOKEN": TOKEN})
    assert ours.config.access_token == TOKEN


@pytest.mark.parametrize("token", [MADE, "kvd_AQAAAAEBAAABlwAAAAA"])
def test_a_token_that_the_cluster_made_is_refused_as_the_static_one(token: str, tmp_path: Path) -> None:
    file = tmp_path / "kvnode.toml"
    file.write_text(f'access_token = "{token}"\n')
    for source in (({"access_token": token}, {}), ({}, {"KVNODE_ACCESS_TOKEN": token}), ({}, {}, file)):
        with pytest.raises(ConfigError, match="'access_token' is a token that the cluster made") as refused:
            load_config(*source)
        assert token not in refused.value.message


def test_a_gateway_may_show_the_nodes_an_access_token_that_the_cluster_made() -> None:
    gateway = {"role": "gateway", "peers": "node:4510"}
    assert load_config(gateway | {"access_token": MADE}, {}).config.access_token == MADE
    with pytest.raises(ConfigError, match="access_token"):
        load_config(gateway | {"access_token": "kvd_AQAAAAEBAAABlwAAAAA"}, {})


def test_every_key_that_they_stand_for_exists() -> None:
    assert {name.key for name in FOREIGN_NAMES if name.key} <= set(KEYS)
    assert all(name.key or name.advice for name in FOREIGN_NAMES)
