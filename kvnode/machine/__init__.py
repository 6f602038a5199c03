"""Resolve and apply: what a transaction means, as pure functions over an ordered key-value transaction."""
