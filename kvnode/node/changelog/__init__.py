"""The changelog: how replicas outside the Raft group follow it (docs/design/regions.md)."""
