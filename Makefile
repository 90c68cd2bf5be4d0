# Needs git, make and Python 3.11 or newer; `make help` lists what there is.
#   make test PYTHON=python3.12 VENV=.venv312     another interpreter, in its own environment

PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/digits

python := $(VENV)/bin/python
ready := $(VENV)/.installed

.DELETE_ON_ERROR:
.PHONY: help demo test test-slow soak figures lint format clean

help:  ## this list (the default)
	@sed -n 's/^\([a-z-]*\):.*  ## /\1|/p' Makefile | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

demo: $(ready)  ## train, sample and report on the built-in digits (RUN=runs/digits)
	@start=$$(date +%s); \
	  $(python) -m experiments.train --config=configs/digits.py --workdir=$(RUN) && \
	  $(python) -m experiments.sample --workdir=$(RUN) && \
	  $(python) -m experiments.evaluate --workdir=$(RUN) && \
	  echo "make demo: $$(( $$(date +%s) - start )) s in all"

test: $(ready)  ## the quick suite
	@$(python) -m pytest -n 2

test-slow: $(ready)  ## what proves slowly
	@$(python) -m pytest -m slow

soak: $(ready)  ## kill or stop a run of several hosts thirty times and look what was lost (10 to 25 minutes)
	@PYTHONPATH=.:tests/training $(python) tests/training/soak.py

figures: $(ready)  ## draw the figures of docs/mathematics.md and docs/losses.md
	@$(python) -m experiments.figures

lint: $(ready)  ## ruff and the type checker
	@$(python) -m ruff check
	@$(python) -m ruff format --check
	@$(python) -m pyrefly check --summary=none

format: $(ready)  ## rewrite the code in the house style
	@$(python) -m ruff check --fix --silent --exit-zero
	@$(python) -m ruff format

clean:  ## remove the environment and the caches; runs/ stays
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	if [ -f $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi

# The stamp is written last and removed first: an environment without one was left half-made, and
# is made anew. Only a folder with a pyvenv.cfg is ever cleared, whatever VENV names.
$(ready): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "make: PYTHON=$(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12"; \
	    exit 1; } >&2
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "make: $(PYTHON) lacks venv or ensurepip (on Debian: apt install python3-venv)"; \
	    exit 1; } >&2
	@[ -f $@ ] || { echo "Making $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv $$([ ! -f $(VENV)/pyvenv.cfg ] || echo --clear) $(VENV); }
	@rm -f $@
	@echo "Installing the pinned dependencies into $(VENV) (about 300 MB, a minute or two)"
	@$(python) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
