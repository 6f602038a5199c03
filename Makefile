# Everything that a newcomer needs is here; each target sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
PROTO_STAMP := kvnode/proto/.stamp
SEEDS ?= 200
START ?= 0
ROUNDS ?= 10
export PYTHONPATH := $(CURDIR)

.PHONY: help demo drill queue-drill test lint sim mutants chaos compat compat-lock compose-check bench bench-connect bench-queue
.PHONY: bench-replicas bench-setup proto compiled lock clean check-python

help:  ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check-python:
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' is missing: install python3 (3.11 or newer), on Debian 'apt install python3 python3-venv'"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $$($(PYTHON) --version) is too old: CPython 3.11 or newer is needed; name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: python3-venv is missing: on Debian 'apt install python3-venv'"; exit 1; }

$(STAMP): requirements/dev.txt | check-python
	@echo "Setting up $(VENV) (once) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

# Not installed by pip, so that what runs is always the code of this folder, wherever that folder goes.
$(BIN)/kvnode: | $(STAMP)
	@printf '%s\n' '#!/bin/sh' 'bin=$$(dirname "$$(readlink -f "$$0")")' \
		'PYTHONPATH="$$bin/../.." exec "$$bin/python" -m kvnode "$$@"' > $@
	@chmod +x $@

$(PROTO_STAMP): $(STAMP) | $(BIN)/kvnode
$(PROTO_STAMP): $(shell find protos -name '*.proto') tools/generate_protos.py
	@$(BIN)/python tools/generate_protos.py
	@touch $@

proto: $(PROTO_STAMP)  ## Generate the protobuf code

# Each node is a process of its own, and with PYTHONDONTWRITEBYTECODE set each would compile three hundred files first.
compiled: $(PROTO_STAMP)
	@$(BIN)/python -m compileall -q kvnode cluster tests bench

demo: compiled  ## Seven data centers on this machine, a killed leader, every write accounted for
	@$(BIN)/python -m kvnode demo $(ARGS)

queue-drill: compiled  ## 100,000 messages, consumers in Python, Deno and Node, leaders and consumers killed, none lost
	@deno=$$($(BIN)/python -m tests.compat.clients); $(BIN)/python -m cluster.queue_drill --deno "$$deno" $(ARGS)

test: compiled  ## Lint, then every test
	@$(MAKE) --no-print-directory lint
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 3 $(ARGS)

lint: $(PROTO_STAMP)  ## Types, style and import direction
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

drill: compiled  ## The failure table on seven real nodes; ARGS=--short for a minute of it, ARGS=--json
	@$(BIN)/python -m cluster.drill $(ARGS)

chaos: compiled  ## What must survive, on real processes, ROUNDS times each
	@KVNODE_TEST_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/integration -o timeout=3600 -rP $(ARGS)

sim: $(PROTO_STAMP)  ## The seeded simulation: SEEDS=n START=s
	@$(BIN)/python -m tests.simulation.run --seeds $(SEEDS) --start $(START) $(ARGS)

mutants: $(PROTO_STAMP)  ## Plant known bugs and show that the simulation sees each
	@$(BIN)/python -m tests.simulation.mutants $(ARGS)

compat: compiled  ## Deno, @deno/kv and denokv against three nodes; writes docs/reference/compatibility.md
	@$(BIN)/python -m tests.compat.run $(ARGS)

compose-check: $(PROTO_STAMP)  ## Build the image and bring docker-compose.yml up with podman (root, Debian, minutes)
	@$(BIN)/python -m tests.compose.check $(ARGS)

bench: compiled  ## Measure beside etcd (and PostgreSQL); ARGS=--quick for a short look
	@$(BIN)/python -m bench.run $(ARGS)

bench-connect: compiled  ## Measure KV Connect: wrk, h2load and Deno, beside etcd and Deno's embedded KV
	@$(BIN)/python -m bench.connect.run $(ARGS)

bench-queue: compiled  ## Measure queues, beside PostgreSQL with SKIP LOCKED; delays and memory of 1,000,000 that wait
	@$(BIN)/python -m bench.queue.run $(ARGS)

bench-replicas: compiled  ## What two replicas of another region cost the leader, per write
	@$(BIN)/python -m bench.replicas $(ARGS)

bench-setup: $(PROTO_STAMP)  ## Install what the benchmark needs (apt-get, as root)
	@$(BIN)/python -m bench.tools

lock:  ## Pin the dependencies anew (needs uv)
	uv pip compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --universal --python-version 3.11 --custom-compile-command "make lock" requirements/runtime.in -o requirements/runtime.txt
	uv pip compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --universal --python-version 3.11 --custom-compile-command "make lock" requirements/dev.in -o requirements/dev.txt

compat-lock:  ## Pin the clients of `make compat` anew (needs uv and npm)
	uv pip compile -q --generate-hashes --no-emit-index-url --no-emit-find-links --universal --python-version 3.11 --prerelease=allow --custom-compile-command "make compat-lock" tests/compat/clients/denokv.in -o tests/compat/clients/denokv.txt
	cd tests/compat/clients && npm install --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts --no-audit --no-fund

clean:  ## Remove everything that was made
	rm -rf $(VENV) kvnode/proto/kv kvnode/proto/deno $(PROTO_STAMP) .mypy_cache .ruff_cache .pytest_cache .hypothesis tests/compat/.build
