# Every target sets up .venv by itself; with an up-to-date one that costs a fraction of a second.

VENV := .venv
BIN := $(VENV)/bin
# Any Python that runs may do the set-up: it looks for one that is new enough itself.
CANDIDATES := $(PYTHON) python3 python3.11 python3.12 python3.13 python3.14 python
CAN_RUN := import sys; sys.exit(sys.version_info < (3, 6))
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest
# Tests run side by side, one thread each: on two cores that beats one process with two threads.
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow check format bench setup clean

demo: setup
	@$(BIN)/allsight demo

test: setup
	@OMP_NUM_THREADS=1 $(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not gpu and not bench" $(ARGS)

test-slow: setup
	@OMP_NUM_THREADS=1 $(PYTEST) -m slow $(ARGS)

# One script a question; BENCH=benchmarks/world_speed.py runs one.
BENCH ?= $(filter-out benchmarks/_%,$(wildcard benchmarks/*.py))

bench: setup
	@for script in $(BENCH); do echo "== $$script"; $(BIN)/python "$$script" $(ARGS) || exit 1; done

check: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports --no-logo

format: setup
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

setup:
	@for python in $(CANDIDATES); do \
	    if "$$python" -c "$(CAN_RUN)" >/dev/null 2>&1; then exec "$$python" scripts/setup_env.py; fi; \
	done; \
	echo "set-up: no Python found on PATH; allsight needs Python 3.11 or newer: install it, or name one with 'make PYTHON=/path/to/python3.11'" >&2; \
	exit 1

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} +
