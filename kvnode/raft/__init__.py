"""A sans-IO Raft core: messages and ticks in, a Ready out."""
