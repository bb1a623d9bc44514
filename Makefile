# make demo · make test · make lint · make docs · make bench: each sets up its own environment in .venv first.
# Another interpreter: make PYTHON=python3.12 test. The CPU build of torch, which is a tenth of the download:
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make demo

PYTHON ?= python3
TEST_WORKERS ?= 2
DEMO ?= demo

BIN := .venv/bin
READY := .venv/.ready

LOWEST := .lowest-venv
#: Where there is no CPU build of the lowest torch, another one: make LOWEST_TORCH=torch==2.13.0 test-lowest
LOWEST_TORCH ?=

.PHONY: help demo test test-lowest lint format docs package bench clean

help:
	@echo "make demo    make a small synthetic dataset in ./$(DEMO) and run the main job on it, end to end"
	@echo "make test    run the tests"
	@echo "make test-lowest  the same with the lowest versions that setup.py promises, in an environment of their own"
	@echo "make lint    check style and types"
	@echo "make format  bring the style in order"
	@echo "make docs    build the documentation site in build/site"
	@echo "make package  build sdist and wheel in dist, and try them in an environment of their own"
	@echo "make bench   measure against nnU-Net v2 (sets up a second environment)"
	@echo "make clean   remove the environment"

demo: $(READY)
	$(BIN)/flaresemi_demo -o $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist worksteal -q

# Old libraries warn of what new Pythons will not have: that is not ours to mend.
test-lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -n $(TEST_WORKERS) --dist worksteal -q -W ignore::DeprecationWarning $(TESTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { echo "run: make format"; exit 1; }
	for system in win32 darwin linux; do $(BIN)/mypy --platform $$system || exit 1; done

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python -m sphinx -q -E -W --keep-going -c docs . build/site
	@cp build/site/README.html build/site/index.html

package:
	PYTHON=$(PYTHON) .ci/try_package

bench: $(READY)
	$(BIN)/python benchmarks/against_nnunet.py

clean:
	rm -rf .venv $(LOWEST) build dist

$(READY): setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit('flaresemi needs Python 3.11 or newer, $(PYTHON) is ' + sys.version.split()[0] \
	    + '; name another one: make PYTHON=python3.12 ...' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

$(LOWEST)/.ready: setup.py
	$(PYTHON) -m venv --clear $(LOWEST)
	grep -o '"[A-Za-z][A-Za-z0-9_.-]*>=[0-9.]*"' setup.py | sed 's/"//g; s/>=/==/' > $(LOWEST)/lowest.txt
	$(if $(LOWEST_TORCH),sed -i.all 's/^torch==.*/$(LOWEST_TORCH)/' $(LOWEST)/lowest.txt)
	$(LOWEST)/bin/pip install --disable-pip-version-check -e ".[dev]" -c $(LOWEST)/lowest.txt
	@touch $@
