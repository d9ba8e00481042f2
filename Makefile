# Two commands do all the set-up on a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-cluster test-slow docs lint clean

# One install for both: the marker is renewed when what is installed changes.
$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	touch $@

# RECBOLE_WHEEL=path/to/recbole-1.2.1-py3-none-any.whl takes a local copy instead of downloading it.
quickstart: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/quickstart.py --output runs/quickstart

# A CUDA build of torch brings its own triton; a CPU build has none, and the kernels' tests run in its interpreter.
$(VENV)/triton: $(VENV)/installed
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install -q triton==3.9.0
	touch $@

# Side by side what uses one core; then, alone, what starts ranks: they wait for each other in loops that take a core each.
test: $(VENV)/installed $(VENV)/triton lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 -m 'not launch and not cluster and not slow'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -q -m 'launch and not cluster and not slow'

# The SLURM templates on a SLURM of three nodes that the tests start on this machine: root, Debian or Ubuntu.
test-cluster: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -q -m cluster tests/cluster

test-slow: $(VENV)/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pytest -q -m slow

# Only the project's own files: a user's notes, data and scratch scripts in the checkout are not looked at.
PYTHON_FILES = $(shell git ls-files '*.py' 2>/dev/null || find setup.py ilrec tools tests -name '*.py')
SHELL_FILES = $(shell git ls-files '*.sh' 2>/dev/null || find slurm tests -name '*.sh') .ci/run

docs: $(VENV)/installed
	$(BIN)/python -m ilrec.config.reference > docs/fields.md

lint: $(VENV)/installed
	@echo 'ruff, mypy and shellcheck over the files that git tracks'
	@$(BIN)/ruff check $(PYTHON_FILES)
	@$(BIN)/ruff format --check -q $(PYTHON_FILES)
	@$(BIN)/mypy $(filter ilrec/% tools/%,$(PYTHON_FILES))
	@$(BIN)/shellcheck $(SHELL_FILES)

clean:
	rm -rf $(VENV) build *.egg-info
