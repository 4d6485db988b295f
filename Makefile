# Thirteen verbs.  The environment in .venv is made on first use; nothing else has to be installed.
PROFILE ?= laptop
SEEDS   ?=
REPEATS ?= $(SEEDS)
PYTHON  ?= python3
PHOTOS  ?=

BIN       := .venv/bin
PIP       := $(BIN)/python -m pip install -qq --disable-pip-version-check
STAMP     := .venv/.installed
AS_ROOT   := $(if $(filter 0,$(shell id -u)),--allow-root)  # a container's only user; Jupyter refuses root otherwise
CHOICE     = --profile $(PROFILE) $(if $(REPEATS),--repeats $(REPEATS))
NOTEBOOKS := notebooks/[0-9][0-9]_*.ipynb
# What hangs on rounding: these tests run once more with noise on weights and scores (tests/noise.py).
FLOATING  := tests/maps tests/refinement tests/networks/test_segmenter.py $(filter-out %_store.py %_keys.py,$(wildcard tests/stages/test_*.py))
# Tests have a store of their own and never touch a user's; notebooks work in notebooks/, so the path is absolute.
# They run in two processes of one thread each, a file at a time in one of them; neither starts more for a study.
TEST_ENV  := env -u MPLBACKEND OMP_NUM_THREADS=1 AEFT_WORKERS=1 AEFT_PROCESSES=1 AEFT_PROFILE=smoke AEFT_RUNS="$(CURDIR)/runs/test" AEFT_QUIET=1 PYTHONWARNINGS=ignore::DeprecationWarning
PYTEST     = $(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo reproduce smoke test report lab book bench weights publish clean

help:  ## say what there is
	@echo "make VERB [PROFILE=laptop] [REPEATS=3] [PHOTOS=\"a.jpg b.jpg\"] [PYTHON=python3]"
	@sed -n 's/^\([a-z]*\):.*## /  \1	/p' Makefile

setup: $(STAMP)  ## make the environment in .venv (every other verb does so on first use)

demo: $(STAMP)  ## what each step makes of embedded scenes and of PHOTOS: pictures and a page in runs/demo
	$(BIN)/aeft demo $(PHOTOS) --out runs/demo

reproduce: $(STAMP)  ## train, evaluate, draw and report on PROFILE, with REPEATS repeats (default: the profile's number)
	$(BIN)/aeft reproduce $(CHOICE)

smoke: $(STAMP)  ## the same lines of code on a few small pictures, in minutes
	$(BIN)/aeft reproduce --profile smoke

test: $(STAMP)  ## lint, unit tests and doctests, some again under noise, then every notebook cell by cell
	@failed=; run() { echo "$$*"; "$$@" || failed=1; }; \
	run $(BIN)/ruff check; \
	run $(PYTEST) --durations=20 --doctest-modules tests aeft_lib; \
	run $(PYTEST) --noise=1e-6 $(FLOATING); \
	run $(PYTEST) --nbval-lax --nbval-current-env --nbval-cell-timeout=900 $(NOTEBOOKS); \
	test -z "$$failed"

report: $(STAMP)  ## published against reproduced, from what is in the store
	$(BIN)/aeft report $(CHOICE)

lab: $(STAMP)  ## open a copy of the notebooks in runs/lab; what was changed there stays
	@mkdir -p runs/lab; for file in $(NOTEBOOKS); do copy=runs/lab/$${file##*/}; \
	test -e $$copy || { sed 's|](\.\./|](../../|g' $$file > $$copy.new && mv $$copy.new $$copy; }; done
	$(BIN)/jupyter lab $(AS_ROOT) --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/runs/lab

book: $(STAMP)  ## notebooks, documents, API and figures as one site in build/book, which needs no network
	$(BIN)/python -m sphinx -q -b html -c docs . build/book
	@echo "open build/book/index.html"

bench: $(STAMP)  ## time sweep, training steps, seeds and predictions, CRF and random walk, each against its rival
	$(BIN)/aeft bench evaluation
	$(BIN)/aeft bench training
	$(BIN)/aeft bench inference
	$(BIN)/aeft bench refinement

weights: $(STAMP)  ## write the trained weights that come with the package anew, from the store, and the pictures drawn with them
	$(BIN)/aeft weights --write
	$(BIN)/python docs/draw.py

publish: $(STAMP)  ## reproduce on laptop with three repeats, and make its notebooks, figures and report the committed ones
	$(BIN)/aeft reproduce --profile laptop --repeats 3 --publish

clean:  ## remove caches, build leftovers and the tests' store; .venv and results stay
	rm -rf runs/test build dist *.egg-info .ruff_cache .pytest_cache
	find . -path ./.venv -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -exec rm -rf {} +

# pip and the build backend are pinned, every file but torch's is checked against its hashes (torch.lock says why).
$(STAMP): pyproject.toml requirements.lock torch.lock
	@echo "setting up .venv for $$($(PYTHON) --version): minutes the first time, and about 6 GB where torch brings its CUDA libraries"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@$(PIP) pip==26.3
	@$(PIP) --require-hashes --no-deps -r requirements.lock
	@$(PIP) --no-build-isolation -r torch.lock -e .
	@touch $@
