# Everything a person types. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
URL ?= http://localhost:$(PORT)
USERS ?= 32
SECONDS ?= 15
EXTRA ?= cpu
NAME ?= serving
# The servers that ours is measured beside; each has its packages in loadtests/peers/<name>.txt.
PEERS := mosec fastapi
# The clients that the server is tested with; each has its packages in tests/clients/requirements/<name>.txt.
CLIENTS := triton kserve perf-analyzer
# The servers that the tests download from; each has its packages in tests/remote/requirements/<name>.txt.
REMOTES := moto
# The environment files of this Makefile: a target that depends on one installs what it needs, once.
SERVE_READY := $(VENV)/.serve-$(EXTRA)
TEST_READY := $(VENV)/.test-$(EXTRA)
LOAD_READY := $(VENV)/.load
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup serve check-models test check lint types imports fmt data train-mnist load peers clients remotes bench docs proto clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(SERVE_READY) ## Serve the bundled models on http://localhost:8000 (PORT=, EXTRA=gpu)
	@$(BIN)/python -m service serve --port $(PORT)

check-models: $(SERVE_READY) ## Load every bundled model as `serve` would and replay its golden rows
	$(BIN)/python -m service check

test: $(TEST_READY) ## Run all tests
	$(BIN)/python -m pytest $(TESTS)

check: lint types imports ## What CI checks before the tests: lint, types, import contracts

lint: $(TEST_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

types: $(TEST_READY)
	$(BIN)/mypy
	$(BIN)/mypy docs/client.py

imports: $(TEST_READY)
	$(BIN)/lint-imports --no-logo

fmt: $(TEST_READY) ## Format the code
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

train-mnist: $(TEST_READY) ## Train, export, verify and publish the next version of the MNIST model
	$(BIN)/python -m training mnist

load: $(LOAD_READY) ## Load-test a running server with real images (URL=, USERS=, SECONDS=)
	@$(BIN)/locust --locustfile loadtests/locustfile.py --headless --only-summary --loglevel ERROR --host $(URL) \
	  --users $(USERS) --spawn-rate $(USERS) --run-time $(SECONDS)s

peers: $(PEERS:%=.peers/%/.ready) ## Install the servers that `make bench` compares ours with, each in its own environment

clients: $(CLIENTS:%=.clients/%/.ready) ## Install the clients that the tests run against the server, each in its own environment

remotes: $(REMOTES:%=.remotes/%/.ready) ## Install the servers that the tests download models from, each in its own environment

bench: $(SERVE_READY) $(LOAD_READY) ## Requests/s and CPU per request beside peers and bare onnxruntime (needs wrk; NAME=)
	$(BIN)/python -m loadtests.bench --name $(NAME)

docs: $(TEST_READY) ## Write docs/configuration.md from the settings
	$(BIN)/python -m service.settings_page > docs/configuration.md

proto: $(TEST_READY) ## Write the gRPC messages from the .proto files
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. service/frontend/grpc/*.proto

setup: $(TEST_READY) ## Install everything for development

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .peers .clients .remotes build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Shoal needs Python 3.11 or newer; set PYTHON="; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(SERVE_READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[$(EXTRA)]'
	@touch $@

$(LOAD_READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[loadtests]'
	@touch $@

$(TEST_READY): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[$(EXTRA),train,loadtests,dev]'
	@touch $@ $(SERVE_READY) $(LOAD_READY)

.peers/%/.ready: loadtests/peers/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# What is listed is all that is imported, not all that moto could use.
.remotes/%/.ready: tests/remote/requirements/%.txt
	$(PYTHON) -m venv .remotes/$*
	.remotes/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement $<
	@touch $@

# No dependencies but those listed: kserve asks for more than its inference clients import.
.clients/%/.ready: tests/clients/requirements/%.txt
	$(PYTHON) -m venv .clients/$*
	.clients/$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --requirement $<
	@touch $@
