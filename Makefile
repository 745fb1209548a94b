# make demo   registers an example and says where its page is
# make test   lint, types and tests
# make bench  the figures of docs/results.md, from the evaluation data in DATA
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
# One thread is as fast as two on a busy machine and repeats exactly; give THREADS=8 on an idle workstation.
THREADS ?= 1
export OMP_NUM_THREADS := $(THREADS)

.PHONY: install demo test lint fast bench clean

install: $(VENV)/.installed models/model.pt

$(VENV)/.installed: requirements.txt requirements-sam2.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

models/model.pt: $(VENV)/.installed
	$(BIN)/python -m scripts.install_weights $@

demo: install
	$(BIN)/python -m scripts.demo --output_dir demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: install
	$(BIN)/python -m pytest -m "not slow"

test: lint
	$(BIN)/python -m pytest

bench: install
	$(BIN)/python -m scripts.benchmark correspondence --data $(DATA)
	$(BIN)/python -m scripts.benchmark registration --data $(DATA)
	$(BIN)/python -m scripts.benchmark cost --data $(DATA)

clean:
	rm -rf $(VENV) demo models/model.pt
