# One command each: `make demo`, `make test`, `make check`. All else is `shoal --help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt

.PHONY: demo test test-fast test-torch test-gpu check lint types imports install install-dev browser lock image image-base clean

demo: install  ## compare grid, random and TPE on scikit-learn's digits, on Ray workers and the embedded Postgres
	$(BIN)/shoal db up
	$(BIN)/shoal run search/examples/digits.yaml

test: install-dev browser  ## install what is missing, run all tests, in two processes
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: install-dev  ## only the tests that take no more than a few seconds
	$(BIN)/pytest -m "not slow and not ray and not browser"

TORCH ?= 2.12.1

test-torch: $(VENV)/torch-$(TORCH)/installed  ## the tests of training on another torch (CUDA builds take 5 GB): make test-torch TORCH=2.11.0
	$(<D)/bin/pytest tests/objectives

GPU_PYTHON ?= $(firstword $(wildcard $(BIN)/python) $(PYTHON))

test-gpu:  ## what a CUDA device must keep, in minutes; torch, pytest and the libraries of objectives/ do: make test-gpu GPU_PYTHON=python3
	$(GPU_PYTHON) -m pytest -m gpu tests/gpu

check: lint types imports test  ## all that CI checks

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

imports: install-dev
	$(BIN)/lint-imports

install: $(VENV)/installed
install-dev: $(VENV)/installed-dev

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "shoal needs Python 3.11 or newer; say which: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "python3 can't make virtual environments; on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

# One call for all: a second one would resolve and build anew.
$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/installed $@

# Beside the other packages of constraints.txt pip chooses the torchvision and the Triton that go with that torch.
# The interpreter of 2.11's Triton, in which its kernels are tested, wants a NumPy before 2.4.
$(VENV)/torch-%/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m venv $(@D)
	grep --invert-match --extended-regexp '^(torch|torchvision|triton$(if $(filter 2.11%,$*),|numpy))==' constraints.txt > $(@D)/constraints.txt
	$(if $(filter 2.11%,$*),echo 'numpy<2.4' >> $(@D)/constraints.txt)
	$(@D)/bin/pip install --quiet --constraint $(@D)/constraints.txt --editable '.[dev]' torch==$*
	@touch $@

browser:  ## tests of pages need a Chromium; as root on Debian it is installed, elsewhere those tests say that they skip
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	       && apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 chromium >/dev/null; } \
	  || echo "no Chromium here: the tests of pages will be skipped (Debian: apt install chromium)" >&2

lock: install-dev  ## write down the versions that are installed now
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

IMAGE ?= localhost/shoal:latest

image: install-dev  ## build the container image, then run it as it will be run: as nobody in particular, read-only (buildah, root)
	deploy/image/build.sh $(IMAGE)
	SHOAL_TEST_IMAGE=$(IMAGE) $(BIN)/pytest tests/deploy/test_image_run.py

image-base:  ## a base for the image from Debian's packages, where no registry can be reached: make image BASE=localhost/shoal-base
	deploy/image/base.sh

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
