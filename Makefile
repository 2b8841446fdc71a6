# make demo: train a small CNN on real images.  make test: everything CI checks of the code.
# make docs: pages about the convolution, in build/docs, with figures that the program draws.
# All make their own virtual environment in .venv first; they need Python 3.11 or later, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# In the other editable mode a script beside the checkout would import its folder, an empty namespace.
EDITABLE := --config-settings editable_mode=compat -e

.PHONY: demo docs test lint format clean

# One BLAS thread: on layers this small a second one gains little, and loses much on a busy machine.
demo: $(VENV)/installed
	OPENBLAS_NUM_THREADS=1 $(BIN)/gpuconv train --out runs/demo --overwrite

docs: $(VENV)/installed
	$(BIN)/python docs/build.py build/docs

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gpuconv needs Python 3.11 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(EDITABLE) '.[viz]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(EDITABLE) '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info runs
