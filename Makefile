PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TIMED := tests/http/test_parsing_stalls.py tests/service/test_stalls.py tests/runtime/test_apply_loop.py \
	tests/runtime/test_state_check.py
PIP := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/pip

.PHONY: help run test simulate lint soak clean

help:
	@echo "make run    start a three-node cluster on this machine, until Ctrl-C"
	@echo "make test   install the development tools and run every check"
	@echo "make lint   the checks without the tests"
	@echo "make soak   simulation, kills, chaos and fuzzing for as long as you like (SOAK_MINUTES, default 60)"
	@echo "make clean  remove what the other targets made"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --editable '.[dev]'
	touch $@

run: $(VENV)/.installed
	@$(BIN)/raftkv dev --nodes 3

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict raftkv
	$(BIN)/lint-imports

test: lint
	rm -rf .coverage
	mkdir -p .coverage
	$(MAKE) --no-print-directory simulate > .simulation.log 2>&1 & simulated=$$!; \
	$(BIN)/coverage run -m pytest --ignore=tests/simulation --ignore=tests/k8s; tested=$$?; \
	wait $$simulated; found=$$?; cat .simulation.log; test $$tested = 0 && test $$found = 0
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Runs at the same time as the other tests. It has those that time the event loop, which coverage slows down.
simulate:
	failed=0; \
	$(BIN)/pytest tests/simulation $(TIMED) || failed=1; \
	$(BIN)/coverage run -m pytest tests/k8s || failed=1; \
	nice $(BIN)/python -m tests.simulation --today 30 --nodes 3 || failed=1; \
	nice $(BIN)/python -m tests.simulation --today 15 --nodes 5 || failed=1; \
	nice $(BIN)/python -m tests.simulation --today 8 --nodes 2 || failed=1; \
	nice $(BIN)/python -m tests.simulation --today 8 --nodes 1 || failed=1; \
	nice $(BIN)/python -m tests.simulation --today 6 --wired || failed=1; \
	exit $$failed

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak --minutes $(or $(SOAK_MINUTES),60)

clean:
	rm -rf $(VENV) .simulation.log .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info raftkv-dev-data
