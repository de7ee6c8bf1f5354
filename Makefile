# One command: make round ROUND=3. Each target that runs the project first sets up its environment if need be.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup try plan wording round generate score train gate evaluate ablate labels report compare show table \
	schema status fork export pack unpack verify push lm-eval test check bench chaos gpu-check peers lock clean

CONFIG ?= configs/nano.toml
RUN    ?= $(basename $(notdir $(CONFIG)))
ROUND  ?=
SET    ?=
EXTRA  ?=
KIND   ?=
LISTS  ?=
PYTHON ?= python3
PYTEST_ARGS ?=
# Two test processes, each with half of the cores; one where they would share a GPU.
TEST_PROCESSES ?= $(if $(wildcard /dev/nvidia[0-9]*),0,2)
SEEDS  ?= 1
ARMS   ?=
AGAINST ?=
RUNS   ?=
BENCH_ARGS ?=
QUESTIONS ?=
DEVICES ?=
PRICE  ?=
# Not from the environment, where it may mean something else.
LOG    :=
WRITE  ?= yes
PROMPT ?=
WORST  ?=
RANDOM ?=
FORMAT ?= markdown
TABLE  ?=
OUT    ?=
# Not from the environment, which may have a FILE or an OWNER of its own.
MERGED := no
CHECK  :=
TOKENS :=
BASE   :=
GOLD   := yes
LOGS   := no
FILE   :=
PLACES :=
OWNER  :=
NEW    ?=
TASKS  ?=
LIMIT  ?=
# For make chaos. Not from the environment, which may have a CASE or an ENGINE of its own.
CASES  :=
SEED   :=
ENGINE :=
CASE   :=
EXECUTOR :=

DRIVER      := 580
PIP_VERSION := 26.3
UV_VERSION  := 0.13.9

# No run of this project sends usage data anywhere; the fork warning of tokenizers is noise here.
export HF_HUB_DISABLE_TELEMETRY := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false
# torch and vLLM call build tools (ninja) that are in .venv, too.
export PATH := $(CURDIR)/.venv/bin:$(PATH)

PY := .venv/bin/python
# An existing run that is named without a CONFIG keeps its frozen config.
FROZEN = $(and $(filter file,$(origin CONFIG)),$(filter-out file,$(origin RUN)),$(wildcard runs/$(RUN)/config.json))
RUN_ARGS = $(if $(FROZEN),,--config '$(CONFIG)') --run '$(RUN)'
SET_ARGS = $(foreach pair,$(SET),--set '$(pair)')

# $(call stage,NAME,ROUND): one recipe line
define stage
@$(PY) -m $(1) $(RUN_ARGS) --round $(2) $(SET_ARGS) $(if $(LOG),--log-json)

endef

# A wrong ROUND, KIND or EXTRA stops here, before anything is installed or run.
FROM_ONE  := $(filter round ablate generate score train lm-eval,$(MAKECMDGOALS))
FROM_ZERO := $(filter gate evaluate fork,$(MAKECMDGOALS))
ifneq ($(FROM_ONE)$(FROM_ZERO),)
  LOWEST := $(if $(FROM_ONE),1,0)
  ifneq ($(shell [[ '$(ROUND)' =~ ^(0|[1-9][0-9]*)$$ && '$(ROUND)' -ge $(LOWEST) ]] && echo yes),yes)
    FIRST := $(firstword $(FROM_ONE) $(FROM_ZERO))
    $(error ROUND must be a whole number >= $(LOWEST), not '$(ROUND)'; for example: make $(FIRST) ROUND=1)
  endif
endif
ifneq ($(filter-out json,$(LOG)),)
  $(error LOG must be json or empty, not '$(LOG)')
endif
WORK  := try wording round generate score train gate evaluate ablate
KINDS := cpu gpu transformers
ifneq ($(KIND),)
  ifneq ($(words $(KIND))$(filter-out $(KINDS),$(KIND)),1)
    $(error KIND must be one of $(KINDS), not '$(KIND)')
  endif
endif
ifneq ($(EXTRA),)
  OPTIONAL := $(filter-out $(KINDS),$(basename $(notdir $(wildcard requirements/*.txt))))
  ifneq ($(filter-out $(OPTIONAL),$(EXTRA)),)
    $(error EXTRA must name an optional list in requirements/ (EXTRA=qwen), not '$(EXTRA)')
  endif
endif

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  CONFIG=$(CONFIG) and RUN=$(RUN) unless you say otherwise; the other values here are examples."
	@echo "  SET=\"run.seed=7 train.lr=1e-4\"  EXTRA=qwen  PYTEST_ARGS=\"-m 'not slow'\""

# .venv/.stamp-NAME is a copy of the last installed list, written after pip has succeeded: an interrupted install
# leaves none, and the same list with a new date is not installed again.
define SETUP
fail() { echo "make setup: $$*" >&2; exit 1; }
gpus() { nvidia-smi -L 2>/dev/null | grep -q '^GPU '; }
system=$$(uname -sm)
kind=$(KIND)
asks="KIND asks for"
if [[ -z $$kind ]]; then
    asks="this machine needs"
    # transformers was chosen before, or nothing else runs here
    if [[ $$system != "Linux x86_64" || -e .venv/.stamp-transformers ]]; then kind=transformers
    elif gpus; then kind=gpu
    else kind=cpu; fi
fi
# Ray's GPUs are on other nodes
ray() { [[ '$(SET)' = *executor.kind=ray* ]] || grep -qsE '^kind *= *"ray"' '$(CONFIG)'; }
if [[ $$kind = gpu && -n "$(filter $(WORK),$(MAKECMDGOALS))" ]] && ! gpus && ! ray; then
    fail "the gpu set needs a GPU, and nvidia-smi lists none here (for a container: docker run --gpus all)"
fi

missing=()
for list in $$kind $(EXTRA); do
    if [[ ! -x .venv/bin/python ]] || ! cmp -s requirements/$$list.txt .venv/.stamp-$$list; then missing+=($$list); fi
done
if [[ $${#missing[@]} = 0 ]]; then
    if [[ " $(MAKECMDGOALS) " = *" setup "* ]]; then echo "environment is up to date (.venv, $$kind)"; fi
    exit 0
fi

case $$system in
    "Linux x86_64") ;;
    "Linux aarch64" | "Darwin arm64")
        [[ $$kind = transformers ]] \
            || fail "the $$kind set is for Linux on x86_64 and this is $$system: use KIND=transformers" ;;
    *) fail "the pinned lists are for Linux on x86_64 or arm64 and macOS on arm64; this is $$system" ;;
esac
for other in $(KINDS); do
    if [[ $$other != $$kind && -e .venv/.stamp-$$other ]]; then
        fail ".venv holds the $$other set and $$asks the $$kind set; remove .venv and try again"
    fi
done
if [[ $$kind = transformers ]]; then
    if [[ " $(EXTRA) " = *" bench "* ]]; then fail "EXTRA=bench compares with vLLM and needs KIND=cpu"; fi
    if gpus; then echo "the transformers set has torch for the CPU only: the GPU here is not used"; fi
fi
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    found=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || found="missing"
    case $$found in
        3.11 | 3.12 | 3.13) ;;
        *) fail "Python 3.11, 3.12 or 3.13 is needed, $(PYTHON) is $$found: try make setup PYTHON=python3.12" ;;
    esac
    $(PYTHON) -m venv .venv
fi

if [[ $$kind = gpu ]] && gpus; then  # peers/gpu.py checks again when a peer starts
    driver=$$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1)
    if [[ $$driver =~ ^([0-9]+)\. && $${BASH_REMATCH[1]} -lt $(DRIVER) ]]; then
        fail "the NVIDIA driver here is $$driver; CUDA 13 needs $(DRIVER) or newer: update it, or use KIND=cpu"
    fi
    command -v $${CC:-gcc} >/dev/null || command -v clang >/dev/null \
        || fail "Triton needs a C compiler on a GPU, and there is none: apt-get install gcc, or set CC"
    header=$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h
    [[ -e $$header ]] || fail "Triton needs $$header on a GPU: apt-get install python3-dev, of that Python's version"
fi

pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$$@"; }
pip install -qq pip==$(PIP_VERSION)
for list in "$${missing[@]}"; do
    lines=requirements/$$list.txt
    index=()
    if [[ $$list = cpu || $$list = transformers ]]; then
        # PyPI has no CPU build of torch for Linux. Unless pip is set up to find one, take it from PyTorch's own index.
        pip install -qq --dry-run --no-deps -r <(grep '^torch==' $$lines) 2>/dev/null \
            || index=(--extra-index-url https://download.pytorch.org/whl/cpu)
    fi
    case $$list in
        cpu) time="about 2 minutes" ;;
        transformers) time="about 2 minutes" ;;
        gpu) time="some 5 GB to download" ;;
        qwen) time="1.6 GB to download" ;;
        *) time="about 1 minute" ;;
    esac
    echo "installing $$(grep -c '^[a-z]' $$lines) packages into .venv ($$list, $$time)…"
    rm -f .venv/.stamp-$$list
    if [[ $$list = cpu || $$list = transformers ]]; then  # no checksums are pinned for these builds
        pip install -qq --no-deps $${index[@]+"$${index[@]}"} -r <(grep '^torch==' $$lines) \
            || fail "pip could not install torch of $$lines (its message is above)"
    fi
    pip install -qq --no-deps --require-hashes -r requirements/sums/$$list.txt \
        || fail "pip could not install $$lines (its message is above)"
    cp $$lines .venv/.stamp-$$list.tmp
    mv .venv/.stamp-$$list.tmp .venv/.stamp-$$list
done
endef
export SETUP

setup:  ## create .venv, packages pinned; KIND=transformers: no vLLM; EXTRA: qwen, pocket, bench, ray, trackio, browser
	@bash -euo pipefail -c "$$SETUP" $(if $(LOG),>&2)

try: setup  ## ask CONFIG's peers 8 questions (or QUESTIONS); print prompts, responses, hours, disk; nothing is kept
	@$(PY) -m pipeline.first_look --config '$(CONFIG)' $(if $(QUESTIONS),--questions '$(QUESTIONS)') $(SET_ARGS)

plan: setup  ## print who runs where, memory, hours and disk of CONFIG up to round ROUND; DEVICES=8x80: as if; PRICE=2.5
	@$(PY) -m pipeline.plan $(RUN_ARGS) $(if $(DEVICES),--devices '$(DEVICES)') \
		$(if $(ROUND),--round '$(ROUND)') $(if $(PRICE),--price '$(PRICE)') $(SET_ARGS)

wording: setup  ## try the [wordings] of CONFIG with each peer, write the best into CONFIG (WRITE=no: print only)
	@$(PY) -m pipeline.wording --config '$(CONFIG)' $(if $(filter no,$(WRITE)),--no-write) $(SET_ARGS)

round: setup  ## run all that is missing up to round ROUND, then print the table (LOG=json: events)
	$(call stage,pipeline.round,$(ROUND))
	$(if $(LOG),,@$(PY) -m evaluate.report --run '$(RUN)')

generate: setup  ## run one stage of round ROUND: the peers answer each question
	$(call stage,generate,$(ROUND))

score: setup  ## run one stage of round ROUND: labels, texts to train on, PMI and weights
	$(call stage,score,$(ROUND))

train: setup  ## run one stage of round ROUND: LoRA on the weighted texts
	$(call stage,train,$(ROUND))

gate: setup  ## run one stage of round ROUND, with a gate: which adapters are used (0: the untouched models vote)
	$(call stage,train.gate,$(ROUND))

evaluate: setup  ## run one stage of round ROUND (0: the untouched models): exact match and GV-Gap
	$(call stage,evaluate,$(ROUND))

ablate: setup  ## run ten arms up to round ROUND, one seed (or SEEDS); ARMS="pst rank": others; AGAINST="pst": compare
	@$(PY) -m pipeline.ablation --config '$(CONFIG)' --run '$(RUN)' --round $(ROUND) --seeds $(SEEDS) \
		$(if $(ARMS),--arms '$(ARMS)') $(if $(AGAINST),--against '$(AGAINST)') $(SET_ARGS)

labels: setup  ## print how often RUN's responses and labels were right, where the questions have gold answers
	@$(PY) -m pipeline.labels --run '$(RUN)'

report: setup  ## print the table of RUN and write its page, runs/RUN/report.html; PRICE=2.5 a device hour
	@$(PY) -m evaluate.report --run '$(RUN)' $(if $(PRICE),--price '$(PRICE)')

compare: setup  ## compare RUNS="a b c" side by side, with AGAINST="a": tables and a page; RUNS=ablation: its page
	@$(PY) -m evaluate.compare --runs '$(RUNS)' $(if $(ROUND),--round '$(ROUND)') \
		$(if $(AGAINST),--against '$(AGAINST)') $(if $(OUT),--out '$(OUT)')

status: setup  ## print the state of each stage of RUN, with progress per peer and errors; LOG=json
	@$(PY) -m pipeline.status --run '$(RUN)' $(if $(LOG),--json)

export: setup  ## write each peer's adapter of RUN and a card; ROUND=2 (else the best), MERGED=yes, CHECK=50, OUT=dir
	@$(PY) -m pipeline.share export --run '$(RUN)' $(if $(ROUND),--round '$(ROUND)') $(if $(OUT),--out '$(OUT)') \
		$(if $(filter yes,$(MERGED)),--merged) $(if $(CHECK),--check '$(CHECK)') $(if $(TOKENS),--tokens '$(TOKENS)') \
		$(foreach pair,$(BASE),--base '$(pair)')

pack: setup  ## write RUN as an archive without models (OUT=file.tar.gz); GOLD=no omits gold answers, LOGS=yes adds logs
	@$(PY) -m pipeline.share pack --run '$(RUN)' $(if $(OUT),--out '$(OUT)') $(if $(filter no,$(GOLD)),--no-gold) \
		$(if $(filter yes,$(LOGS)),--logs)

unpack: setup  ## put the run of FILE=archive into runs/ (RUN=name), list what is missing; PLACES=/old=/new maps a path
	@$(PY) -m pipeline.share unpack --file '$(FILE)' $(if $(filter-out file,$(origin RUN)),--run '$(RUN)') \
		$(foreach pair,$(PLACES),--place '$(pair)')

verify: setup  ## check all files of RUN, or of FILE=archive, against their checksums
	@$(PY) -m pipeline.share verify $(if $(FILE),--file '$(FILE)',--run '$(RUN)')

push: setup  ## print the commands that upload RUN's export to the hub, as OWNER=name; nothing is uploaded
	@$(PY) -m pipeline.share push --run '$(RUN)' $(if $(OUT),--out '$(OUT)') $(if $(OWNER),--owner '$(OWNER)')

show: setup  ## show one question of RUN: responses, label, PMI, weights; ROUND=1, and PROMPT=id, WORST=3 or RANDOM=3
	@$(PY) -m pipeline show '$(RUN)' $(if $(WORST)$(RANDOM),'$(or $(WORST),$(RANDOM))') \
		$(if $(ROUND),--round '$(ROUND)') $(if $(PROMPT),--prompt '$(PROMPT)') \
		$(if $(WORST),--worst) $(if $(RANDOM),--random)

table: setup  ## print the results of RUN for a paper; FORMAT=latex or csv, else Markdown
	@$(PY) -m pipeline table '$(RUN)' --$(FORMAT)

schema: setup  ## print the tables that the files hold; TABLE=chains prints the columns of one
	@$(PY) -m data schema $(if $(TABLE),'$(TABLE)')

fork: setup  ## begin run NEW=name after ROUND=2 of RUN, under another CONFIG or SET; link what still holds
	@$(PY) -m pipeline.fork --run '$(RUN)' --round $(ROUND) --new '$(NEW)' \
		$(if $(filter file,$(origin CONFIG)),,--config '$(CONFIG)') $(SET_ARGS)

lm-eval: override EXTRA += bench
lm-eval: setup  ## run lm-evaluation-harness after ROUND=3 of RUN; TASKS="gsm8k,arc_easy", QUESTIONS=file, LIMIT=50
	@$(PY) -m pipeline.lm_eval --run '$(RUN)' --round $(ROUND) $(if $(TASKS),--tasks '$(TASKS)') \
		$(if $(QUESTIONS),--questions '$(QUESTIONS)') $(if $(LIMIT),--limit '$(LIMIT)')

test: setup  ## run the tests; EXTRA="pocket qwen" adds those with real models; PYTEST_ARGS goes to pytest
	@$(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: setup  ## check lint, format, types, and that imports only point down
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@.venv/bin/lint-imports

bench: override EXTRA := pocket bench
bench: setup  ## compare with lm-eval, TRL, vLLM on the same inputs, without a GPU: hours; BENCH_ARGS=--help lists sizes
	@$(PY) -m bench all $(BENCH_ARGS)

chaos: setup  ## disturb a tiny run and resume it, 90 times (or CASES); SEED, ENGINE=vllm, EXECUTOR=ray, CASE=its seed
	@$(PY) -m tests.chaos $(if $(CASES),--cases '$(CASES)') $(if $(SEED),--seed '$(SEED)') \
		$(if $(ENGINE),--engine '$(ENGINE)') $(if $(EXECUTOR),--executor '$(EXECUTOR)') $(if $(CASE),--case '$(CASE)')

gpu-check: setup  ## check that this machine computes what is promised: 4 minutes, on a CPU 12 at most (OUT=file.json)
	@$(PY) -m pipeline.gpu_check $(if $(OUT),--out '$(OUT)')

peers: setup  ## make the three nano peers again, from nothing; the project ships the result
	@$(PY) -m peers.nano.pretrain

lock:  ## resolve the pinned lists in requirements/ again; LISTS="transformers ray" for some of them
	@[[ -x .cache/lock/bin/python ]] || $(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/python -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	@PATH="$(CURDIR)/.cache/lock/bin:$$PATH" .cache/lock/bin/python requirements/lock.py $(LISTS)
	@PATH="$(CURDIR)/.cache/lock/bin:$$PATH" .cache/lock/bin/python requirements/sums.py $(LISTS)

clean:  ## remove caches and converted models; keep .venv and runs/
	@rm -rf .cache .mypy_cache .pytest_cache .ruff_cache
	@find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
