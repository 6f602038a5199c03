"""The kvnode command."""
