# Each target does all its set-up by itself: only Python 3.11 or later is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Offline and one thread a process: what the tests measure must not depend on the machine around them.
export OMP_NUM_THREADS := 1
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-slow check clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autopar needs Python 3.11 or later; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[plan,hf,dev]'
	touch $@

# Plans GPT-2 for eight GPUs, then a small GPT for four CPU processes, and trains it beside one process.
demo: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/demo.sh

# Everything that has to hold, in some ten minutes on two cores. A module's tests stay on one worker: what they
# share is set up once.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadscope

# The tests of more than five seconds each: larger samples and products, some forty minutes.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadscope -m slow

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
