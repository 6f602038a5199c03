"""Code generated from protos/ (`make proto`); nothing here is written by hand."""
