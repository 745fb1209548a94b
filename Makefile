# make demo   registers an example and says where its page is
# make test   lint, types and tests
# make test-clients  the page in a browser and MONAI Label's server, each in an environment beside the first one
# make bench  figures of docs/results.md and docs/log.md, from the evaluation data in DATA
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
# One thread is as fast as two on a busy machine and repeats exactly; give THREADS=8 on an idle workstation.
THREADS ?= 1
export OMP_NUM_THREADS := $(THREADS)

.PHONY: install demo test test-clients test-page test-label lint fast bench clean

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

# These need packages that would change the first environment: they get their own, which finds everything else in it.
beside = $(BIN)/python -m venv $(1) && $(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
	> $$($(1)/bin/python -c "import site; print(site.getsitepackages()[0])")/beside.pth
PIP := python -m pip install --quiet --no-compile --disable-pip-version-check

$(VENV)-page/.installed: $(VENV)/.installed requirements-page.txt requirements-browser.txt
	$(call beside,$(VENV)-page)
	$(VENV)-page/bin/$(PIP) -r requirements-page.txt -r requirements-browser.txt
	touch $@

# Without isolation sam2, which MONAI Label asks for, is built with the torch that is there instead of one more.
$(VENV)-label/.installed: $(VENV)/.installed requirements-build.txt requirements-monailabel.txt
	$(call beside,$(VENV)-label)
	$(VENV)-label/bin/$(PIP) -r requirements-build.txt
	SAM2_BUILD_CUDA=0 $(VENV)-label/bin/$(PIP) --no-build-isolation -r requirements-monailabel.txt
	touch $@

test-page: install $(VENV)-page/.installed
	$(VENV)-page/bin/python -m pytest tests/test_page_browser.py

test-label: install $(VENV)-label/.installed
	$(VENV)-label/bin/python -m pytest tests/test_monai_label_server.py

test-clients: test-page test-label

bench: install
	$(BIN)/python -m scripts.benchmark correspondence --data $(DATA)
	$(BIN)/python -m scripts.benchmark correspondence --data $(DATA) --prompt click
	$(BIN)/python -m scripts.benchmark registration --data $(DATA)
	$(BIN)/python -m scripts.benchmark cost --data $(DATA)

clean:
	rm -rf $(VENV) $(VENV)-page $(VENV)-label demo models/model.pt
