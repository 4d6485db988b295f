# Ten verbs.  The environment in .venv is made on first use; nothing else has to be installed.
PROFILE ?= laptop
SEEDS   ?=
REPEATS ?= $(SEEDS)
PYTHON  ?= python3

BIN       := .venv/bin
STAMP     := .venv/.installed
CHOICE     = --profile $(PROFILE) $(if $(REPEATS),--repeats $(REPEATS))
NOTEBOOKS := notebooks/[0-9][0-9]_*.ipynb
# What hangs on rounding: these tests run once more with noise on weights and scores (tests/noise.py).
FLOATING  := tests/maps tests/refinement tests/networks/test_segmenter.py tests/stages
# Tests have a store of their own and never touch a user's; notebooks work in notebooks/, so the path is absolute.
TEST_ENV  := env -u MPLBACKEND AEFT_PROFILE=smoke AEFT_RUNS="$(CURDIR)/runs/test" AEFT_QUIET=1 PYTHONWARNINGS=ignore::DeprecationWarning

.DEFAULT_GOAL := help
.PHONY: help setup reproduce smoke test report lab bench publish clean

help:  ## say what there is
	@echo "make VERB [PROFILE=laptop] [REPEATS=3] [PYTHON=python3]"
	@sed -n 's/^\([a-z]*\):.*## /  \1	/p' Makefile

setup: $(STAMP)  ## make the environment in .venv (every other verb does so on first use)

reproduce: $(STAMP)  ## train, evaluate, draw and report on PROFILE, with REPEATS repeats (default: the profile's number)
	$(BIN)/aeft reproduce $(CHOICE)

smoke: $(STAMP)  ## the same lines of code on a few small pictures, in minutes
	$(BIN)/aeft reproduce --profile smoke

test: $(STAMP)  ## lint, unit tests and doctests, some again under noise, then every notebook cell by cell
	@failed=; run() { echo "$$*"; "$$@" || failed=1; }; \
	run $(BIN)/ruff check; \
	run $(TEST_ENV) $(BIN)/python -m pytest --doctest-modules tests aeft_lib; \
	run $(TEST_ENV) $(BIN)/python -m pytest --noise=1e-6 $(FLOATING); \
	run $(TEST_ENV) $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=900 $(NOTEBOOKS); \
	test -z "$$failed"

report: $(STAMP)  ## published against reproduced, from what is in the store
	$(BIN)/aeft report $(CHOICE)

lab: $(STAMP)  ## open the notebooks
	$(BIN)/jupyter lab notebooks

bench: $(STAMP)  ## time the one-pass sweep, a step of the triplet, CRF and random walk, each against its rival
	$(BIN)/aeft bench evaluation
	$(BIN)/aeft bench training
	$(BIN)/aeft bench refinement

publish: $(STAMP)  ## reproduce on laptop with three repeats, and make its notebooks, figures and report the committed ones
	$(BIN)/aeft reproduce --profile laptop --repeats 3 --publish

clean:  ## remove caches, build leftovers and the tests' store; .venv and results stay
	rm -rf runs/test build dist *.egg-info .ruff_cache .pytest_cache
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

$(STAMP): pyproject.toml requirements.lock
	@echo "setting up .venv for $$($(PYTHON) --version): minutes the first time, and about 6 GB where torch brings its CUDA libraries"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@
