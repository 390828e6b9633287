# Everything that is done with this repository; `make` lists it.
PYTHON ?= python3
BIN := .venv/bin
TEST := OMP_NUM_THREADS=1 $(BIN)
PINNED := --quiet -c constraints.txt
# uv installs five times as fast; pip where only pip is configured for the index of packages
install = $(BIN)/uv pip install --python $(BIN)/python --system-certs $(PINNED) $(1) || $(BIN)/pip install $(PINNED) $(1)

.PHONY: help venv demo test check prepare lab docs test-site test-cluster fuzz clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

venv: .venv/dev ## Make .venv with the package and everything for development

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say which: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	-$(BIN)/pip install --disable-pip-version-check $(PINNED) uv

# A full installation (dev) serves the demo too, so only one of the two is ever made.
.venv/demo: .venv/bin/pip settings.ini setup.py constraints.txt
	@echo "installing one_shui into .venv (some minutes, once)"
	@$(call install,-e .)
	@touch $@

.venv/dev: .venv/bin/pip settings.ini setup.py constraints.txt
	@echo "installing one_shui and its development tools into .venv (some minutes, once)"
	@$(call install,-e ".[dev]")
	@touch $@ .venv/demo

demo: .venv/demo ## Watch a network forget 20 drawn people (a minute or two)
	$(BIN)/one-shui demo --out runs/demo

test: .venv/dev ## Run every notebook and compare its results with the stored ones, then tests/
	$(TEST)/python tools/run_notebooks.py --check --strict
	$(TEST)/pytest -n 2 --dist worksteal

check: .venv/dev ## Is everything generated up to date, well formed, typed?
	$(BIN)/python tools/drift.py
	$(BIN)/ruff check one_shui tests tools benchmarks
	$(BIN)/mypy one_shui
	$(BIN)/python tools/notebook_figures.py

prepare: .venv/dev ## Bring generated files up to date: exported modules, README, results stored in notebooks
	$(BIN)/python tools/drift.py --write
	$(TEST)/python tools/run_notebooks.py

lab: .venv/dev ## Open the notebooks in JupyterLab
	PYTHONSTARTUP=$(CURDIR)/tools/lab.py $(BIN)/jupyter lab --notebook-dir nbs nbs/tutorials/five_minutes.ipynb

docs: .venv/dev ## Build the documentation site into _docs
	@$(call install,-e ".[docs]")
	$(BIN)/python tools/docs.py

test-site: .venv/dev ## Open every page of the built site in Chromium, without a network (after make docs)
	@$(call install,playwright axe-playwright-python)
	$(BIN)/pytest tests/site

test-cluster: .venv/dev ## A grid on a Ray cluster of two nodes, one of them killed midway
	@$(call install,-e ".[ray]")
	$(TEST)/pytest tests/cluster

fuzz: .venv/dev ## Spoil files and feed them to every reader, ten minutes each with hypothesis and atheris
	ONE_SHUI_FUZZ=4000 ONE_SHUI_KILLS=100 $(BIN)/pytest tests/test_request.py -k "spoiled or killed"
	@$(call install,atheris)
	for reader in celeba mufac own receipt ledger requests description grid model artifact answers splits photo; do \
	  $(TEST)/python tests/fuzz/fuzz_readers.py $$reader -max_total_time=50 -rss_limit_mb=4096 build/fuzz/$$reader || exit 1; done

clean: ## Remove what was built, but neither .venv nor runs
	rm -rf build dist _proc _docs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
