# Two commands for a new machine: `make demo` and `make test`. Both make .venv and install what they need, pinned.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Remade when the pins change.
INSTALLED := $(VENV)/.installed
# `make demo MODEL=smollm2`, `make demo SHORT=1`
DEMO_FLAGS := $(if $(MODEL),--model $(MODEL)) $(if $(SHORT),--short)

.PHONY: demo test check format proto clean

demo: $(INSTALLED)
	$(BIN)/rlhf demo $(DEMO_FLAGS)

test: $(INSTALLED)
	$(BIN)/python -m pytest --cov --cov-report=term

# Style, types, import rules, contract. tests/contract holds what a linter can't say.
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python -m pytest -q tests/contract

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(INSTALLED)
	$(BIN)/python proto/generate.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .coverage*

$(INSTALLED): pyproject.toml deploy/install.sh
	PYTHON="$(PYTHON)" sh deploy/install.sh $(VENV)
	touch $(INSTALLED)
