# Each target does all its set-up on a fresh machine: virtual environment, pinned packages, run.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-fast lint typecheck docs clean

install: .venv/.installed

demo: .venv/.installed
	$(BIN)/fourdiffusion demo
	$(BIN)/fourdiffusion evaluate prediction=runs/demo reference=data/sample/truth

# Files of tests go to as many processes as there are cores, four at most; each computes with one thread.
PARALLEL := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile

test: .venv/.installed
	$(PARALLEL)

# Without the tests marked slow: those that train, fit, start processes or open a browser.
test-fast: .venv/.installed
	$(PARALLEL) -m 'not slow'

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: .venv/.installed
	$(BIN)/mypy

docs: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is missing or older than 3.11: install Python 3.11, or name one: make PYTHON=python3.11"; exit 1; }
	@echo "installing the pinned packages into .venv: a few minutes, 2 GB (more with a CUDA build of torch)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,viewer]'
	touch $@

# What the targets above made; runs/ stays.
clean:
	rm -rf .venv build fourdiffusion.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
