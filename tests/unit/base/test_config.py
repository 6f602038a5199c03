from __future__ import annotations

from pathlib import Path

import pytest

from kvnode.base.config import KEYS, load_config
from kvnode.base.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    file = folder / "node.toml"
    file.write_text(text)
    return file


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, 'name = "file"\ndc = "file"\nregion = "file"\npeers = ["a:1", "b:2"]\nbootstrap = true\n')
    environment = {"KVNODE_NAME": "environment", "KVNODE_DC": "environment", "HOME": "/", "KVNODE_ENDPOINTS": "x"}
    loaded = load_config({"name": "flag", "dc": None}, environment, file)
    config = loaded.config
    assert (config.name, config.dc, config.region, config.listen) == (
        "flag",
        "environment",
        "file",
        "127.0.0.1:4510",
    )
    assert config.peers == ("a:1", "b:2")
    assert config.bootstrap
    assert loaded.origins["name"] == "flag"
    assert loaded.origins["dc"] == "environment"
    assert loaded.origins["region"] == f"file {file}"
    assert loaded.origins["listen"] == "default"
    assert set(loaded.origins) == set(KEYS)


def test_texts_become_what_the_key_holds() -> None:
    config = load_config({"peers": "a:1, b:2,"}, {"KVNODE_BOOTSTRAP": "yes", "KVNODE_TICK_MS": "20"}).config
    assert (config.peers, config.bootstrap, config.tick_ms) == (("a:1", "b:2"), True, 20)
    assert load_config({}, {"KVNODE_BOOTSTRAP": "off"}).config.bootstrap is False


@pytest.mark.parametrize(
    ("flags", "environment", "said"),
    [
        ({}, {"KVNODE_DATADIR": "x"}, "did you mean 'data_dir'"),
        ({}, {"KVNODE_QQQQQ": "x"}, "config show"),
        ({"tick_ms": "fast"}, {}, "'tick_ms' (flag) must be a whole number"),
        ({}, {"KVNODE_BOOTSTRAP": "maybe"}, "'bootstrap' (environment) must be true or false"),
        ({"listen": "4510"}, {}, "'listen' must be host:port"),
        ({"listen": "h:99999"}, {}, "'listen' must be host:port"),
        ({"peers": "a"}, {}, "'peers' must be host:port"),
        ({"join": "a:1", "bootstrap": True}, {}, "'join' and 'bootstrap' exclude one another"),
        ({"join": "a"}, {}, "'join' must be host:port"),
        ({"join": "a:1", "listen": "0.0.0.0:4510"}, {}, "cannot reach this one by 0.0.0.0:4510"),
        ({"bootstrap": True, "peers": "a:1", "advertise": "[::]:1"}, {}, "with 'advertise'"),
        ({"replica": True}, {}, "'replica' says as what 'join' asks"),
        ({"name": ""}, {}, "'name' may not be empty"),
        ({"min_commit_dcs": 0}, {}, "'min_commit_dcs' must be at least 1"),
        ({"automatic_promotion": True, "primary_lease_ms": 3_999}, {}, "'primary_lease_ms' must be from 4000"),
        ({"automatic_promotion": True, "primary_lease_ms": 300_001}, {}, "to 300000, not 300001"),
        ({"automatic_promotion": True, "election_timeout_ms": 3_000}, {}, "four times election_timeout_ms"),
        ({"tick_ms": 100, "election_timeout_ms": 200}, {}, "'election_timeout_ms' must be at least 400"),
        ({"log_level": "loud"}, {}, "'log_level' must be"),
    ],
)
def test_what_is_wrong_is_named(flags: dict[str, object], environment: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(flags, environment)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('nmae = "x"', "did you mean 'name'"),
        ("tick_ms = true", "must be a whole number"),
        ("name = 1", "must be a text"),
        ("peers = [1]", "must be a list of host:port"),
        ("name = ", "not valid TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config({}, {}, file)
    assert said in caught.value.message
    assert str(file) in caught.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
        load_config({}, {}, tmp_path / "none.toml")


def test_every_key_says_what_it_means() -> None:
    assert all(key.help for key in KEYS.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("grpc_tls_cert",), "'grpc_tls_cert' and 'grpc_tls_key' are given together"),
        (("grpc_tls_cert", "grpc_tls_key"), "a node needs 'grpc_tls_cert' and 'grpc_tls_ca' together"),
        (("grpc_tls_ca",), "a node needs 'grpc_tls_cert' and 'grpc_tls_ca' together"),
    ],
)
def test_tls_between_nodes_is_whole_or_absent(tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    file = write(tmp_path, "")
    with pytest.raises(ConfigError, match=said):
        load_config(dict.fromkeys(given, str(file)), {})
    with pytest.raises(ConfigError, match="names no file"):
        load_config({"grpc_tls_ca": str(tmp_path / "none.pem")}, {})
    with pytest.raises(ConfigError, match="needs 'grpc_tls_cert'"):
        load_config({"grpc_tls_client_auth": True}, {})
    gateway = {"role": "gateway", "peers": ["h:1"], "grpc_tls_ca": str(file)}
    assert load_config(gateway, {}).config.grpc_tls_ca == str(file)


def test_a_gateway_serves_grpc_only_where_it_is_told_to() -> None:
    gateway = {"role": "gateway", "peers": "a:1"}
    assert load_config(gateway, {}).config.listen == ""
    assert load_config({**gateway, "listen": "h:2"}, {}).config.listen == "h:2"
    assert load_config(gateway, {"KVNODE_LISTEN": "h:3"}).config.listen == "h:3"
    with pytest.raises(ConfigError, match="push_allow"):
        load_config({"push_allow": "10.0.0.0/8,nonsense"}, {})
    assert load_config({"push_allow": "10.0.0.0/8,::1"}, {}).config.push_allow == ("10.0.0.0/8", "::1")
