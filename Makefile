# make demo · make test · make lint · make bench: each sets up its own environment in .venv first.
# Another interpreter: make PYTHON=python3.12 test. The CPU build of torch, which is a tenth of the download:
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
TEST_WORKERS ?= 2
DEMO ?= demo

BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test lint format bench clean

help:
	@echo "make demo    make a small synthetic dataset in ./$(DEMO) and run the main job on it, end to end"
	@echo "make test    run the tests"
	@echo "make lint    check style and types"
	@echo "make format  bring the style in order"
	@echo "make bench   measure against nnU-Net v2 (sets up a second environment)"
	@echo "make clean   remove the environment"

demo: $(READY)
	$(BIN)/flaresemi_demo -o $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python benchmarks/against_nnunet.py

clean:
	rm -rf .venv

$(READY): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit('flaresemi needs Python 3.11 or newer, $(PYTHON) is ' + sys.version.split()[0] \
	    + '; name another one: make PYTHON=python3.12 ...' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@
