"""How tokens that a cluster has made begin: by that they are told from the static one, which a user thinks up."""

from __future__ import annotations

ACCESS_TOKEN_PREFIX = "kvn_"  # `kvnode token create` made it
DATA_TOKEN_PREFIX = "kvd_"  # the metadata exchange handed it out


def is_made_by_cluster(token: str) -> bool:
    """Whether a token is of one database and one right, and can expire and be revoked; a static one is none of that."""
    return token.startswith((ACCESS_TOKEN_PREFIX, DATA_TOKEN_PREFIX))
