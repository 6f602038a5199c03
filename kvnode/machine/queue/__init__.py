"""Queues: messages, leases and dead letters as rows, and what transactions do to them."""
