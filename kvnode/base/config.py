"""A node's configuration: flags over KVNODE_* environment over a TOML file over defaults.

One table (KEYS) says what each key means; `kvnode config show` prints it with each value's origin.
"""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from kvnode.base import denokv, limits
from kvnode.base.errors import ConfigError
from kvnode.base.tokens import ACCESS_TOKEN_PREFIX, is_made_by_cluster

ENVIRONMENT_PREFIX = "KVNODE_"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


PROMOTION_PRICE = (
    "automatic_promotion is on. Its price: a primary that is cut off from both other regions stops answering within "
    "primary_lease_ms ({lease_ms} ms), healthy as it is; and what it has acknowledged and no other region has yet is "
    "lost with a promotion, which nobody is asked about"
)


class Key(NamedTuple):
    """One key: its type, default and meaning."""

    kind: type
    default: Any
    help: str
    secret: bool = False  # never shown
    of: str = ""  # what each item of a list is


KEYS: dict[str, Key] = {
    "name": Key(str, "a", "the operator's name for the node, unique in the cluster"),
    "role": Key(
        str, "node", "node, or gateway: KV Connect without data, in front of the nodes that peers names, nearest first"
    ),
    "region": Key(str, "us-east", "the region it stands in"),
    "dc": Key(str, "dc-a", "the data center it stands in; commits are counted by it"),
    "data_dir": Key(str, "kvnode-data", "where log, state and identity live; one node's own"),
    "listen": Key(
        str, "127.0.0.1:4510", "host:port of the gRPC server; of a gateway, which serves queues there if given"
    ),
    "advertise": Key(str, "", "host:port by which peers and clients reach it; empty = listen"),
    "egress_proxy": Key(
        str,
        "",
        "host:port of an HTTP proxy (CONNECT) through which it opens connections to other nodes; empty = directly",
    ),
    "ops_listen": Key(str, "127.0.0.1:4511", "host:port of /livez, /readyz and /metrics"),
    "connect_listen": Key(
        str, "127.0.0.1:4512", "host:port of KV Connect, over which Deno's clients come; empty = not served"
    ),
    "tls_cert": Key(str, "", "PEM file with the certificate and its chain: KV Connect is then https; empty = http"),
    "tls_key": Key(str, "", "PEM file with the certificate's private key"),
    "grpc_tls_cert": Key(
        str, "", "PEM file with the node's certificate and chain: the gRPC port then speaks TLS; empty = plain text"
    ),
    "grpc_tls_key": Key(str, "", "PEM file with that certificate's private key"),
    "grpc_tls_ca": Key(
        str, "", "PEM file with the authorities that vouch for the nodes' certificates, by which nodes know each other"
    ),
    "grpc_tls_client_auth": Key(
        bool, False, "whoever calls gRPC, node or client, must show a certificate that grpc_tls_ca vouches for"
    ),
    "peers": Key(
        list,
        [],
        "addresses of the initial voters, this node included or not; read with bootstrap only, and by a gateway",
        of="host:port",
    ),
    "bootstrap": Key(bool, False, "make a new cluster of this node and its peers; ignored once it belongs to one"),
    "join": Key(
        list,
        [],
        "addresses of members that a node without a cluster asks to be taken in, until it is; ignored once it belongs "
        "to one",
        of="host:port",
    ),
    "replica": Key(bool, False, "with join: as a replica of another region, rather than as a learner"),
    "min_commit_dcs": Key(int, 2, "data centers in which a write is durable before it is acknowledged; at bootstrap"),
    "allow_unsafe_topology": Key(bool, False, "start although the loss of one data center stops writes"),
    "tick_ms": Key(int, limits.TICK_MS, "milliseconds between two ticks of the consensus core"),
    "election_timeout_ms": Key(
        int,
        limits.TICK_MS * limits.ELECTION_TIMEOUT_TICKS,
        "silence of a leader after which an election may begin; the wait is up to twice this",
    ),
    "leader_lease": Key(
        bool,
        False,
        "a leader that a majority of the voters has answered within the election timeout serves strong reads without "
        "asking them again; its price: clocks that run apart by more than 5 % break strong consistency. On all voters "
        "the same; without effect until a majority holds its votes for it",
    ),
    "log_retention_bytes": Key(
        int, limits.LOG_RETENTION_BYTES, "log, which is the changelog, kept at most for followers, replicas and backups"
    ),
    "log_retention_age_ms": Key(
        int, 0, "what is older is dropped from the log, even below log_retention_bytes; 0 = by size alone"
    ),
    "on_replication_stall": Key(
        str,
        "alarm",
        "when every replica region is further behind than max_unreplicated_ms: alarm (writes go on, status and a "
        "metric say so) or stop (writes are held); on all voters the same",
    ),
    "max_unreplicated_ms": Key(
        int, limits.MAX_UNREPLICATED_MS, "how much of the newest writes may be in no replica region; see the key above"
    ),
    "automatic_promotion": Key(
        bool,
        False,
        "another region is promoted by itself when the primary one is lost; its price: a primary that is cut off from "
        "both other regions stops. In force once all members say so, with the same primary_lease_ms",
    ),
    "primary_lease_ms": Key(
        int,
        limits.PRIMARY_LEASE_MS,
        "with automatic_promotion, for so long after a majority of all nodes was heard the primary answers, and no "
        "other region is promoted; at least four times election_timeout_ms",
    ),
    "segment_bytes": Key(int, limits.SEGMENT_BYTES, "size of one file of the log"),
    "access_token": Key(
        str,
        "",
        "a token of your own that reads and writes every database and administers, of at least 12 characters; on all "
        "nodes the same; empty = only tokens that `kvnode token create` made. Of a gateway: also what it shows the "
        "nodes, where it may be an admin token so made",
        secret=True,
    ),
    "grpc_auth": Key(
        bool, False, "gRPC calls need a token: those of KV one of their database, those of Admin one with that right"
    ),
    "push_allow": Key(
        list,
        [],
        "networks to which queues may be pushed although they are not of the public internet, for example 127.0.0.0/8 "
        "or 10.1.2.3; on all nodes the same",
        of="network",
    ),
    "log_level": Key(str, "info", "debug, info, warning or error, to standard error"),
}


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """The values; KEYS says what they mean."""

    name: str
    role: str
    region: str
    dc: str
    data_dir: str
    listen: str
    advertise: str
    egress_proxy: str
    ops_listen: str
    connect_listen: str
    tls_cert: str
    tls_key: str
    grpc_tls_cert: str
    grpc_tls_key: str
    grpc_tls_ca: str
    grpc_tls_client_auth: bool
    peers: tuple[str, ...]
    bootstrap: bool
    join: tuple[str, ...]
    replica: bool
    min_commit_dcs: int
    allow_unsafe_topology: bool
    tick_ms: int
    election_timeout_ms: int
    leader_lease: bool
    log_retention_bytes: int
    log_retention_age_ms: int
    on_replication_stall: str
    max_unreplicated_ms: int
    automatic_promotion: bool
    primary_lease_ms: int
    segment_bytes: int
    access_token: str
    grpc_auth: bool
    push_allow: tuple[str, ...]
    log_level: str


class Loaded(NamedTuple):
    """A configuration, and where each value came from: flag, environment, file or default."""

    config: NodeConfig
    origins: dict[str, str]
    notices: tuple[str, ...] = ()  # what was left aside, in sentences


def load_config(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None) -> Loaded:
    """Put the layers together.

    Args:
        flags: by key; None = not given.
        environment: the process's; only KVNODE_* and, weaker, DENO_KV_* (denokv.py) are read. KVNODE_CONFIG and
            KVNODE_ENDPOINTS are others' business.
        file: a TOML file with the keys at its top level.

    Raises:
        ConfigError: naming the key, where it stands, and what to write instead.
    """
    values: dict[str, Any] = {name: key.default for name, key in KEYS.items()}
    origins = dict.fromkeys(KEYS, "default")
    foreign, notices = denokv.from_environment(environment)
    for origin, layer in (
        (f"file {file}", _read_file(file) if file else {}),
        ("environment (DENO_KV_*)", {name: value for name, value in foreign.items() if name in KEYS}),
        ("environment", _from_environment(environment)),
        ("flag", {name: value for name, value in flags.items() if value is not None}),
    ):
        for name, value in layer.items():
            values[name] = _convert(name, value, origin)
            origins[name] = origin
    values |= {name: tuple(values[name]) for name, key in KEYS.items() if key.kind is list}
    if values["role"] == "gateway" and origins["listen"] == "default":
        values["listen"] = ""  # a node on the same machine may listen there
    config = NodeConfig(**values)
    _check(config)
    return Loaded(config, origins, tuple(notices))


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


_NOT_NODE_KEYS = frozenset({"CONFIG", "DATABASE", "DEBUG", "ENDPOINTS", "OUTPUT", "TIMEOUT", "TOKEN"})


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
        and name.removeprefix(ENVIRONMENT_PREFIX) not in _NOT_NODE_KEYS
        and not name.startswith("KVNODE_TEST_")
    }


def _convert(name: str, value: Any, origin: str) -> Any:
    key = KEYS.get(name)
    if key is None:
        close = difflib.get_close_matches(name, KEYS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else "`kvnode config show` lists the keys"
        raise ConfigError(f"unknown configuration key '{name}' ({origin}): {hint}")
    if isinstance(value, str) and key.kind is not str:
        value = _parse(name, key.kind, value, origin)
    if key.kind is list and isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return list(value)
    if key.kind is list or not isinstance(value, key.kind) or (key.kind is int and isinstance(value, bool)):
        wanted = {list: f"a list of {key.of}", int: "a whole number", bool: "true or false", str: "a text"}[key.kind]
        raise ConfigError(f"'{name}' ({origin}) must be {wanted}, not {value!r}")
    return value


def _parse(name: str, kind: type, text: str, origin: str) -> Any:
    if kind is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind is bool:
        lowered = text.lower()
        if lowered in ("1", "true", "yes", "on"):
            return True
        return False if lowered in ("0", "false", "no", "off", "") else text
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"'{name}' ({origin}) must be a whole number, not {text!r}") from None


_EVERYWHERE = frozenset({"0.0.0.0", "::"})


def _check(config: NodeConfig) -> None:
    for name in ("listen", "ops_listen", "advertise", "connect_listen", "egress_proxy"):
        address = getattr(config, name)
        if address or name not in _may_be_empty(config):
            split_address(address, name)
    _check_tls(config)
    for name in ("peers", "join"):
        for address in getattr(config, name):
            split_address(address, name)
    if config.join and config.bootstrap:
        raise ConfigError("'join' and 'bootstrap' exclude one another: a node founds a cluster or is taken into one")
    if config.replica and not config.join:
        raise ConfigError("'replica' says as what 'join' asks to be taken in: give 'join', the host:port of members")
    if (config.bootstrap and config.peers) or config.join:
        _check_reachable(config)
    for network in config.push_allow:
        parse_network(network, "push_allow")
    if config.role not in ("node", "gateway"):
        raise ConfigError(f"'role' must be node or gateway, not {config.role!r}")
    if config.role == "gateway" and not (config.peers and config.connect_listen):
        raise ConfigError("a gateway needs 'peers', the host:port of nodes' gRPC servers, and 'connect_listen'")
    for name in ("name", "dc", "region", "data_dir"):
        if not getattr(config, name):
            raise ConfigError(f"'{name}' may not be empty")
    for name, least in (
        ("min_commit_dcs", 1),
        ("tick_ms", 10),
        ("election_timeout_ms", 4 * config.tick_ms),
        ("log_retention_bytes", 1_048_576),
        ("log_retention_age_ms", 0),
        ("max_unreplicated_ms", 1_000),
        ("segment_bytes", 65_536),
    ):
        if getattr(config, name) < least:
            raise ConfigError(f"'{name}' must be at least {least}, not {getattr(config, name)}")
    _check_access_token(config.access_token, config.role)
    if config.automatic_promotion:
        _check_lease(config)
    if config.on_replication_stall not in ("alarm", "stop"):
        raise ConfigError(f"'on_replication_stall' must be alarm or stop, not {config.on_replication_stall!r}")
    if config.log_level.lower() not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"'log_level' must be debug, info, warning or error, not {config.log_level!r}")


def _check_lease(config: NodeConfig) -> None:
    """An election waits for up to twice the timeout: one alone must never look like the loss of the region."""
    least = 2 * limits.MIN_LEASE_ELECTIONS_COUNT * config.election_timeout_ms
    if not least <= config.primary_lease_ms <= limits.MAX_PRIMARY_LEASE_MS:
        raise ConfigError(
            f"'primary_lease_ms' must be from {least} (four times election_timeout_ms) to "
            f"{limits.MAX_PRIMARY_LEASE_MS}, not {config.primary_lease_ms}"
        )


def _check_tls(config: NodeConfig) -> None:
    for cert, key in (("tls_cert", "tls_key"), ("grpc_tls_cert", "grpc_tls_key")):
        if bool(getattr(config, cert)) != bool(getattr(config, key)):
            raise ConfigError(f"'{cert}' and '{key}' are given together, or neither is")
    for name in ("tls_cert", "tls_key", "grpc_tls_cert", "grpc_tls_key", "grpc_tls_ca"):
        path = getattr(config, name)
        if path and not Path(path).is_file():
            raise ConfigError(f"'{name}' names no file: {path}")
    if config.role == "node" and bool(config.grpc_tls_cert) != bool(config.grpc_tls_ca):
        raise ConfigError("a node needs 'grpc_tls_cert' and 'grpc_tls_ca' together: its own proof, and the others'")
    if config.grpc_tls_client_auth and not config.grpc_tls_cert:
        raise ConfigError("'grpc_tls_client_auth' needs 'grpc_tls_cert': in plain text nobody shows a certificate")
    if config.grpc_tls_client_auth and not config.grpc_tls_ca:
        raise ConfigError("'grpc_tls_client_auth' needs 'grpc_tls_ca', by which certificates are judged")


def _may_be_empty(config: NodeConfig) -> tuple[str, ...]:
    always = ("advertise", "connect_listen", "egress_proxy")
    return (*always, "listen") if config.role == "gateway" else always


def _check_reachable(config: NodeConfig) -> None:
    """The other members are told one address, and it must be somebody's in particular."""
    address = config.advertise or config.listen
    if split_address(address, "listen")[0] in _EVERYWHERE:
        raise ConfigError(
            f"the other nodes cannot reach this one by {address}, which is every address of a machine: say by which "
            "one they can, with 'advertise'"
        )


def _check_access_token(token: str, role: str) -> None:
    """A header must carry it as it is; and it must be the user's own, because it can do everything and never ends."""
    if is_made_by_cluster(token) and not (role == "gateway" and token.startswith(ACCESS_TOKEN_PREFIX)):
        raise ConfigError(
            "'access_token' is a token that the cluster made, for one database and one right; as the static token it "
            "could do everything, and would not be revoked. Leave it out: clients use it all the same. If a static "
            "token is wanted, `openssl rand -hex 16` makes a good one"
        )
    least = limits.MIN_STATIC_TOKEN_CHARACTERS_COUNT
    if token and (len(token) < least or not all("!" <= letter <= "~" for letter in token)):
        raise ConfigError(
            f"'access_token' must have at least {least} characters, ASCII and without spaces; "
            "`openssl rand -hex 16` makes a good one"
        )


def split_address(address: str, name: str) -> tuple[str, int]:
    """(host, port) of "host:port". Raises ConfigError that names the key."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"'{name}' must be host:port, for example 127.0.0.1:4510, not {address!r}")
    return host.strip("[]"), int(port)


def parse_network(text: str, name: str) -> Network:
    """A network, or a single address. Raises ConfigError that names the key."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        text = f"'{name}' must name networks such as 10.0.0.0/8 or fd00::/8, not {text!r}: {error}"
        raise ConfigError(text) from None


if {field.name for field in fields(NodeConfig)} != set(KEYS):
    raise RuntimeError("KEYS and NodeConfig name different keys")
