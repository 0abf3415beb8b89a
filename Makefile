VENV := .venv
PYTHON := $(VENV)/bin/python

.PHONY: test
test: $(VENV)/ready
	$(VENV)/bin/ruff check unionfs tests
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest

$(VENV)/ready: pyproject.toml setup.py
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install -q -e '.[dev]'
	touch $@
