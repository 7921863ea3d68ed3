# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The exact versions that were tested; override with CONSTRAINTS= to take the newest that setup.cfg allows.
CONSTRAINTS ?= -c constraints.txt
# Processes of tests and of mypy: one more than the cores of a small machine, since many tests wait. A test file stays
# in one of them, so that its fixtures are made once.
JOBS ?= 3

.PHONY: demo test test-long test-matrix lint docs bench study gpu-check clean

# Compiles all installed modules in one process for each core, which takes pip over a minute in a single process. Some
# packages have files that are no Python: compileall leaves them out, as pip does, but then ends with status 1.
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --no-compile $(CONSTRAINTS) -e .
	$(COMPILE)
	touch $@

# In one step with the packages of $(VENV)/installed.
$(VENV)/installed-dev: setup.cfg pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/python -m pip install --quiet --no-compile $(CONSTRAINTS) -e '.[dev]'
	$(COMPILE)
	touch $(VENV)/installed $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -e '.[docs]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/posters demo --out demo

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m 'not long'

# The rest: benchmarks run small, networks that fail for minutes, every combination of what make test has some of.
test-long: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m long

# The quick tests with each Python of this machine, and with the lowest versions that setup.cfg allows. Some GB for each.
test-matrix:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet uv
	PATH="$(CURDIR)/build/uv/bin:$$PATH" build/uv/bin/python tests/matrix.py $(MATRIX)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -n $(JOBS)
	$(BIN)/lint-imports --no-cache

# The site, in build/docs/index.html. A broken link or a warning is an error. Needs Python 3.11 or newer.
docs: $(VENV)/installed-docs
	$(BIN)/python docs/tools/check_links.py
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs build/docs

# Minutes, and some GB of peers' packages; IMAGES=DIR takes your posters instead of drawn ones. A peer that cannot be
# installed is left out.
bench: $(VENV)/installed-dev
	-$(BIN)/python tests/bench/peers.py
	$(BIN)/python tests/bench/loader.py $(if $(IMAGES),--images $(IMAGES)) --json bench-loader.json
	$(BIN)/python tests/bench/exactness.py
	$(BIN)/python tests/bench/shuffle.py

# What each part of a recipe is worth; on your posters: make study IMAGES=DIR METADATA=CSV WEIGHTS=FILE [SPLITS=3]
METADATA ?= ../shared/posters/meta_processed.csv
WEIGHTS ?= ../shared/weights/resnet50_imagenet_fp16.safetensors
SPLITS ?= 1
study: $(VENV)/installed-dev
	$(BIN)/python tests/bench/study.py --images $(or $(IMAGES),../shared/posters/images) --metadata $(METADATA) --weights $(WEIGHTS) --splits $(SPLITS) $(STUDY)

# What this project promises of a GPU, measured in 9 minutes; a tiny rehearsal on a CPU. GPU_CHECK="--data DIR --out DIR"
gpu-check: $(VENV)/installed-dev
	PYTHON=$(abspath $(BIN))/python bash tests/bench/gpu_check.sh $(GPU_CHECK)

clean:
	rm -rf $(VENV) demo study build bench-loader.json tests/bench/.work tests/bench/.peers *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
