# Two commands for a new machine: `make demo` and `make test`. Both make .venv and install what they need, pinned.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Remade when the pins change.
INSTALLED := $(VENV)/.installed
# `make demo MODEL=smollm2`, `make demo SHORT=1`
# Tests run side by side in so many processes, each with servers of its own. A file's tests stay together.
TEST_WORKERS ?= 2
DEMO_FLAGS := $(if $(MODEL),--model $(MODEL)) $(if $(SHORT),--short)

.PHONY: demo test coverage test-long check check-page page format proto client lock sbom clean

demo: $(INSTALLED)
	$(BIN)/rlhf demo $(DEMO_FLAGS)

test: $(INSTALLED) page
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations=20 -rs

# The same, with the lines that it covers: slower, since Python 3.11 traces services and training workers line by line.
coverage: $(INSTALLED) page
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

# What takes minutes by nature, and so is no part of `test`.
test-long: $(INSTALLED) page
	$(BIN)/python -m pytest -m long --durations=20

# Style, types, import rules, contract. tests/contract holds what a linter can't say.
check: $(INSTALLED) check-page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python -m pytest -q tests/contract

# Types, style and tests of the web page.
check-page: $(INSTALLED)
	$(BIN)/python hatch_build.py check

# The web page, where its sources have changed.
page: $(INSTALLED)
	$(BIN)/python hatch_build.py

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(INSTALLED)
	$(BIN)/python proto/generate.py

# The synchronous client from the asynchronous one.
client: $(INSTALLED)
	$(BIN)/python -m services.client.unasync

# Versions and hashes of every package, after a change of a pin in pyproject.toml.
lock: $(INSTALLED)
	$(BIN)/python deploy/lock.py

# Packages of .venv with their licences (CycloneDX), after `make lock` and an installation of what it locked.
sbom: $(INSTALLED)
	$(BIN)/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --spec-version 1.6 --output-reproducible -o deploy/sbom.cdx.json

clean:
	rm -rf services/gateway/web/dist services/gateway/web/node_modules
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .coverage*

$(INSTALLED): pyproject.toml deploy/install.sh $(wildcard deploy/requirements/*.txt)
	PYTHON="$(PYTHON)" sh deploy/install.sh $(VENV)
	touch $(INSTALLED)
