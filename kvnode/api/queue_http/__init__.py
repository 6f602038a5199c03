"""Queues over HTTP, and the JavaScript module that speaks it."""
