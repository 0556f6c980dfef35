# Targets for people and CI alike; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?=
# Processes of `make test`, each on one thread; a file's tests stay together.
TEST_PROCESSES ?= 2
DEMO_FLAGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format soak results ablations clean

# What `make results` judges: all shipped drafters, on the data folder's evaluation prompts.
DRAFTERS := $(patsubst drafters/smollm2-135m/%/config.json,%,$(wildcard drafters/smollm2-135m/*/config.json))
SETS := gsm8k math500 mbpp humaneval mt-bench alpaca
DATA_FLAGS := $(SETS:%=--data eval/%.jsonl)
# Prompts that no drafter has seen: those of the training file without an answer in the training.
CALIBRATION_FLAGS ?= --data prompts_train.jsonl \
	--exclude drafters/smollm2-135m/trained_prompts.jsonl.gz

THRESHOLDS := 0 0.2 0.4 0.5 0.6 0.7 0.8 0.9

# NAME:SETTING of each ablation; base is depth 2, block size 7, Markov head, 16,384 draft tokens.
ABLATIONS := base:drafter.num_layers=2 depth1:drafter.num_layers=1 depth3:drafter.num_layers=3 \
	block4:drafter.block_size=4 block12:drafter.block_size=12 rnn:drafter.markov_head_type=rnn \
	gated:drafter.markov_head_type=gated nohead:drafter.markov_rank=0 vocab8k:drafter.draft_vocab_size=8192 \
	fullvocab:drafter.draft_vocab_size=0
STUDY_depth := depth1 base depth3
STUDY_block_size := block4 base block12
STUDY_head := nohead base gated rnn
STUDY_vocabulary := vocab8k base fullvocab

define ablation
	$(BIN)/dspark train --config configs/smollm2-135m-ablation.toml --set $(2) \
		--set out=runs/ablation/$(1) $(TRAIN_FLAGS)

endef

define study
	$(BIN)/dspark eval $(DATA_FLAGS) --limit 30 --temperature 1 --study $(1) \
		$(foreach n,$(STUDY_$(1)),--drafter $(n)=runs/ablation/$(n)/drafter) \
		--json results/ablation_$(1).json

endef

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with the pinned dependencies (quick when nothing changed)

# The stamp lies inside the environment, so that deleting the environment deletes it too.
$(STAMP): pyproject.toml constraints.txt hatch_build.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; try: make setup PYTHON=python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup  ## fetch the default target, then answer with and without the drafter for a minute
	$(BIN)/dspark fetch smollm2-135m
	$(BIN)/dspark demo $(DEMO_FLAGS)

test: setup  ## all tests but the soak ones, under 10 minutes
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile $(PYTEST_FLAGS)

lint: setup  ## ruff check, ruff format --check, mypy, words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/words.py

format: setup  ## let ruff fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: setup  ## long checks, outside CI
	$(BIN)/python -m pytest -m soak $(PYTEST_FLAGS)

results: setup  ## repeat evaluation, calibration check and report from the shipped drafters
	$(BIN)/dspark eval $(DATA_FLAGS) $(DRAFTERS:%=--drafter %) --limit 60 \
		--temperature 0 --temperature 1 --json results/eval.json
	$(BIN)/dspark eval $(DATA_FLAGS) --limit 10 --temperature 1 --study threshold \
		$(THRESHOLDS:%=--threshold %) --json results/eval_threshold.json
	$(BIN)/dspark calibrate $(CALIBRATION_FLAGS) --check-only --temperature 1 \
		--json results/calibration.json
	$(BIN)/dspark bench head --json results/head_cost.json
	$(BIN)/dspark report $(wildcard results/*.json results/*.jsonl) --out results/report

ablations: setup  ## train and judge the ablations, a quarter of an hour each
	$(foreach a,$(ABLATIONS),$(call ablation,$(word 1,$(subst :, ,$(a))),$(word 2,$(subst :, ,$(a)))))
	$(foreach s,depth block_size head vocabulary,$(call study,$(s)))

clean:  ## remove the environment, caches and builds (not data, models or drafters)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
