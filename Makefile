# Two commands set up everything: `make demo` and `make test`. Both make the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KERAS ?= .venv-keras
INSTALL := -m pip install --quiet --disable-pip-version-check
PIP := $(BIN)/python $(INSTALL) -c constraints.txt

.PHONY: demo test quick lint format drawings bench page clean

# The whole pipeline on drawn radiographs; ends with the accuracy and where the report lies.
demo: $(VENV)/.train
	$(BIN)/vgg16-xray demo --to demo

# Everything that CI holds: style, types, imports, all tests.
test: lint
	$(BIN)/python -m pytest

# The tests that take under ten seconds each.
quick: $(VENV)/.dev
	$(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The two drawings in README and docs, from the code.
drawings: $(VENV)/.train
	$(BIN)/python -m vgg16_xray.report.drawings docs/figures

# Against the notebook's own Keras loop, in a virtual environment of its own, and each engine; kept in docs/benchmarks.md.
# Some parts: make bench PART="accuracy finetune".
bench: $(VENV)/.dev $(KERAS)/.keras
	$(BIN)/python benchmarks/bench.py $(PART) --keras $(KERAS)/bin/python

# The web page, from web/ into the package: only who changes it needs node and npm.
page:
	cd web && npm ci --ignore-scripts --no-audit --no-fund && npm run build

clean:
	rm -rf $(VENV) $(KERAS) demo

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.train: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/.dev: $(VENV)/.venv pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.train

$(KERAS)/.keras: benchmarks/keras-requirements.txt
	$(PYTHON) -m venv $(KERAS)
	$(KERAS)/bin/python $(INSTALL) -r $<
	touch $@
