"""The compose file for real: `make compose-check`. Not part of `make test`."""
