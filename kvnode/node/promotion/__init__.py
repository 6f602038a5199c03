"""Automatic promotion of a region, and the primary lease that makes it safe (docs/design/failover.md, ADR 0011)."""
