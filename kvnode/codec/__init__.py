"""Bytes and the facts they stand for: keys, values, versionstamps, log entries."""
