"""kvnode: Deno KV as a distributed, replicated database."""

__version__ = "0.1.0"
