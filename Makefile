# Two commands: make run, make test. Each makes .venv, installs into it, and does its job; the second
# call of either starts at once.

VENV := .venv
PY := $(VENV)/bin/python
FIND := for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(FIND))

.PHONY: run test laws claims lint clean

run: $(VENV)/installed
	$(PY) -m experiments train mlp --data digits --strategy hybrid --mesh data=4,model=2 --verify

test: lint laws

laws: $(VENV)/installed
	$(PY) -m pytest -q --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=10

claims: $(VENV)/installed
	$(PY) -m pytest -q -m claims tests

lint: $(VENV)/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "jaxpar needs Python 3.11 or newer: install one, or say make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	-$(PY) -m pip install --quiet --disable-pip-version-check --editable ".[strangers]" || \
		echo "without public model packages: their tests are skipped"
	-$(PY) -m pip install --quiet --disable-pip-version-check --no-deps nvidia-cudnn-cu13 || \
		echo "without cuDNN: tests of fused attention on described GPUs are skipped"
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
