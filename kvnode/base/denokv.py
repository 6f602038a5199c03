"""The names that the denokv server's users know: which of them mean something here, and what to do about the others.

denokv is one process over one SQLite file; what its flags and DENO_KV_* variables set is either a key of ours, or
belongs to a database rather than to a node, or has no counterpart. None of them is passed over in silence where the
user would be surprised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from kvnode.base.errors import ConfigError
from kvnode.base.tokens import is_made_by_cluster

ENVIRONMENT_PREFIX = "DENO_KV_"


class ForeignName(NamedTuple):
    """One of denokv's settings. `key`: ours of the same meaning. Else `advice` says what to do instead."""

    flag: str  # empty: it has only the variable
    variable: str  # empty: it has only the flag
    key: str = ""
    advice: str = ""
    is_harmless: bool = False  # going on without it surprises nobody


_NO_BUCKET = "kvnode follows no bucket: its own nodes replicate the data, and `kvnode import` brings a file's data in"

FOREIGN_NAMES = (
    ForeignName("--access-token", "DENO_KV_ACCESS_TOKEN", key="access_token"),
    ForeignName("--addr", "DENO_KV_ADDR", key="connect_listen"),
    ForeignName(
        "--sqlite-path",
        "DENO_KV_SQLITE_PATH",
        advice="kvnode keeps a log and a state of its own in --data-dir, not in one SQLite file: start the node "
        "without it, then bring the file's data in with `kvnode import`",
    ),
    ForeignName(
        "--read-only",
        "DENO_KV_READ_ONLY",
        advice="a database is read only, not a node: `kvnode database set default --mode read-only`",
    ),
    ForeignName(
        "--sync-from-s3",
        "DENO_KV_SYNC_FROM_S3",
        advice=_NO_BUCKET,
    ),
    ForeignName("--s3-bucket", "DENO_KV_S3_BUCKET", advice=_NO_BUCKET),
    ForeignName("--s3-prefix", "DENO_KV_S3_PREFIX", advice=_NO_BUCKET),
    ForeignName("--s3-endpoint", "DENO_KV_S3_ENDPOINT", advice=_NO_BUCKET),
    ForeignName(
        "--num-workers",
        "DENO_KV_NUM_WORKERS",
        advice="a node is one process with one loop: start more nodes or gateways instead of workers",
        is_harmless=True,
    ),
)


_LEFT_TO_CLIENTS = (
    "{variable} holds a token that `kvnode token create` made, which is for clients, and is left aside: as the static "
    "token of this process it could do everything, for ever. Unset it here"
)


def refusal_of_flag(name: ForeignName) -> ConfigError:
    """What a user is told who gives a flag of denokv's that has no counterpart."""
    return ConfigError(f"{name.flag} is a flag of the denokv server: {name.advice}")


def notice_of(name: ForeignName, given_as: str) -> str:
    """What a user is told who sets what is left aside. `given_as`: the flag or the variable."""
    return f"{given_as} is a setting of the denokv server and is left aside: {name.advice}"


def from_environment(environment: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """(values by our keys, notices) of the DENO_KV_* variables that are set.

    Raises:
        ConfigError: one is set that cannot be honoured and would be missed.
    """
    values: dict[str, str] = {}
    notices = []
    for name in FOREIGN_NAMES:
        text = environment.get(name.variable, "")
        if not text:
            continue
        if name.key == "access_token" and is_made_by_cluster(text):
            notices.append(_LEFT_TO_CLIENTS.format(variable=name.variable))
        elif name.key:
            values[name.key] = text
        elif name.is_harmless or text.lower() in {"0", "false", "no", "off"}:
            notices.append(notice_of(name, name.variable))
        else:
            raise ConfigError(
                f"{name.variable} is a setting of the denokv server: {name.advice}. Then unset the variable"
            )
    return values, notices
