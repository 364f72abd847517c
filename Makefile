# A book that computes. `make help` lists what there is.
#
# make book    sets up .venv, executes what is stale, builds the site, prints its address
# make test    the whole proof
#
# Everything runs in .venv; nothing outside this folder is written.

.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV     := .venv
BIN      := $(VENV)/bin
STAMP    := $(VENV)/installed
SITE     := _build/html
PORT     ?= 8000
# Two at a time: chapters and tests each keep to one thread (below).
JOBS     ?= 2
PYTEST   := $(BIN)/python -m pytest
PARALLEL := -n $(JOBS) --dist loadscope
NOTEBOOKS := $(sort $(wildcard notebooks/*/*.ipynb))
# The kernel is this environment's Python, whatever kernels a home folder names.
NBVAL    := $(PYTEST) --nbval --nbval-current-env --no-header -p no:cacheprovider $(PARALLEL)
UNIT     := $(PYTEST) --no-header $(PARALLEL) -m "not site"

# The first Python that is 3.11 or newer. PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)

# One thread a process: the digits do not depend on the number of cores.
export OMP_NUM_THREADS := 1
export MKL_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export MPLBACKEND := agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export JUPYTER_PLATFORM_DIRS := 1

# $(call stage,name,command): run it, say how long it took, keep its exit status.
define stage
	@printf '\n== %s\n' '$(1)'; began=$$(date +%s); $(2); status=$$?; \
	printf '== %s: %s s\n' '$(1)' "$$(( $$(date +%s) - began ))"; exit $$status
endef

# Stages follow one another, also under `make -j`.
.NOTPARALLEL:

.PHONY: help install book execute site serve test unit check nbval nbval-default nbval-avx2 \
	test-site quick lint bench symmetry clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | \
	awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv was found. Install one \
	(Debian: apt-get install python3-venv), or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[book,test]"
	@touch $@

install: $(STAMP) ## set up .venv with the exact versions of constraints.txt

book: $(STAMP) ## execute the chapters that are stale, build the site, print its address
	@$(MAKE) --no-print-directory execute site
	@printf '\nThe book: file://%s/index.html\n' "$(CURDIR)/$(SITE)"

execute: $(STAMP) ## execute the chapters whose stamp is stale
	$(call stage,execute stale chapters,$(BIN)/sokmerge chapters execute --stale)

# A build that warned must not pass the next time because Sphinx skips what it has read.
site: $(STAMP) ## build the site from what the notebooks hold, without executing them
	$(call stage,build the site,$(BIN)/sokmerge pages && \
	{ $(BIN)/jupyter-book build . --warningiserror --nitpick --keep-going --quiet \
	|| { rm -rf _build/.doctrees; exit 1; }; })

serve: book ## build the book and serve it on 127.0.0.1 (PORT=8000)
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) $(PORT)

test: $(STAMP) ## the whole proof: unit tests, every notebook, guards, the built pages
	@$(MAKE) --no-print-directory lint unit check nbval test-site

lint: $(STAMP) ## ruff
	$(call stage,lint,$(BIN)/ruff check --quiet .)

unit: $(STAMP) ## unit tests and doctests
	$(call stage,unit tests,$(UNIT))

check: $(STAMP) ## the guards of the chapters: fresh, counted, compared, their data those published
	$(call stage,guards,$(BIN)/sokmerge chapters check)

nbval: $(STAMP) ## re-run every notebook, compare every output
	$(call stage,notebooks,$(NBVAL) $(NOTEBOOKS))

nbval-default: $(STAMP) ## the same with plain vector instructions
	$(call stage,notebooks without vector instructions,ATEN_CPU_CAPABILITY=default $(NBVAL) $(NOTEBOOKS))

nbval-avx2: $(STAMP) ## the same with AVX2
	$(call stage,notebooks with AVX2,ATEN_CPU_CAPABILITY=avx2 $(NBVAL) $(NOTEBOOKS))

test-site: $(STAMP) ## the built pages, on disk and in a browser
	$(call stage,built pages,$(PYTEST) --no-header $(PARALLEL) -m site tests/book)

quick: $(STAMP) ## the inner loop, under two minutes: ruff and the unit tests that are not slow
	@$(MAKE) --no-print-directory lint
	$(call stage,quick tests,$(PYTEST) --no-header $(PARALLEL) -m "not slow and not site")

bench: $(STAMP) ## time the probes against other programs, write book/benchmarks.md
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	$(call stage,benchmarks,$(PYTEST) --no-header tests/benchmarks)

symmetry: $(STAMP) ## check the symmetry of all torchvision models, write book/symmetries.md
	$(call stage,symmetries,$(BIN)/sokmerge symmetry table)

clean: ## remove what can be made again, except .venv
	rm -rf _build build .pytest_cache .ruff_cache .hypothesis .benchmarks *.egg-info
