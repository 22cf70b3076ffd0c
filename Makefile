# The only entry for people and CI. `make help` lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
.DEFAULT_GOAL := help
# Tests start hundreds of processes: none of them shall compile everything again.
unexport PYTHONDONTWRITEBYTECODE

##@ Start here
.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup ## Start everything, apply manifests/examples, print usage and invoices; leave it running
	@$(BIN)/python -m tests.support.demo

.PHONY: down
down: ## Stop what `make demo` started
	@if test -x $(BIN)/python; then $(BIN)/python -m tests.support.demo down; fi

.PHONY: env
env: ## Print what `eval "$$(make -s env)"` needs to talk to the demo
	@$(BIN)/python -m tests.support.controlplane env

##@ Work on it
.PHONY: setup
setup: $(VENV)/.synced ## Create .venv from uv.lock

$(VENV)/.synced: pyproject.toml uv.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@$(BIN)/uv sync --quiet --frozen --all-extras --inexact
	@touch $@

.PHONY: check
check: setup ## Lint, types, import rules, generated files, unit tests: under a minute, no cluster
	@$(MAKE) --no-print-directory -j2 lint types unit

.PHONY: lint
lint: setup
	@test ! -e operator/__init__.py || \
		{ echo 'operator/__init__.py would shadow the standard library: remove it'; exit 1; }
	@$(BIN)/python -m tests.support.tree_rules
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache
	@$(MAKE) --no-print-directory verify

.PHONY: types
types: setup
	@$(BIN)/mypy

.PHONY: unit
unit: setup
	@$(BIN)/python -m pytest -q tests/unit

.PHONY: test test-shared test-alone
test: check ## Everything on a real API server and a real PostgreSQL
	@rights=$$(mktemp -d) && trap 'rm -rf '$$rights EXIT && \
		BOTPLANE_RIGHTS_TO=$$rights $(MAKE) --no-print-directory -j2 test-shared test-alone && \
		BOTPLANE_RIGHTS_FROM=$$rights $(BIN)/python -m pytest -v tests/cluster/test_least_privilege.py

test-shared: setup
	@# What waits comes first, what is short comes last: both workers end at the same time.
	@$(BIN)/python -m pytest -v --durations=10 -n 2 --dist loadfile --no-loadscope-reorder \
		tests/cluster tests/events tests/isolation tests/postgres

# Metering under fire wants all pods for itself; the harness kills its own control plane, and
# tries what no account of ours may do.
test-alone: setup
	@$(BIN)/python -m pytest -v --durations=10 tests/faults/test_metering*.py
	@$(BIN)/python -m pytest -v --durations=10 tests/faults \
		--ignore-glob '*/test_metering*.py'
	@env -u BOTPLANE_RIGHTS_TO $(BIN)/python -m pytest -v --durations=10 tests/harness

.PHONY: test-faults
test-faults: setup ## Every crash point, faults of watches, writes and neighbours, and bugs of our own
	@BOTPLANE_FAULTS=all $(BIN)/python -m pytest -v --durations=10 tests/faults
	@$(MAKE) --no-print-directory test-seeded

.PHONY: test-seeded
test-seeded: setup ## Put our own bugs in, one by one, and print which test caught each
	@$(BIN)/python -m tests.faults.seed

.PHONY: test-node
test-node: setup ## What only real pods can prove, on a real kubelet with enforced policies; needs root
	@CLUSTER=node $(BIN)/python -m pytest -v --durations=10 tests/node

.PHONY: bench
bench: setup ## Measure, side by side with the floor of the same run
	@$(BIN)/python -m tests.bench

.PHONY: generate
generate: setup ## Write the generated files
	@$(BIN)/python -m botplane.api.generate .

.PHONY: golden
golden: setup ## Rewrite the expected manifests of tests/golden
	@$(BIN)/python -m tests.support.golden

.PHONY: verify
verify: setup ## Fail when a generated file is not current
	@tmp=$$(mktemp -d) && trap 'rm -rf '$$tmp EXIT && \
		$(BIN)/python -m botplane.api.generate $$tmp > /dev/null && \
		diff -ru crds $$tmp/crds && diff -ru docs/reference $$tmp/docs/reference || \
		{ echo 'run `make generate`'; exit 1; }

.PHONY: format
format: setup ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
