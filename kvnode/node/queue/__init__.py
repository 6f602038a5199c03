"""Queues at work: the leader's dispatcher, and the consumers that are connected to this node."""
