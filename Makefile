# `make help` lists the targets. Everything runs in .venv, made from requirements.lock: exact versions, checked by hash.
PYTHON ?= python3
# uv where it is on the PATH, else pip; `make setup UV=` takes pip all the same. pip reads your pip configuration, uv its own.
UV     ?= $(shell command -v uv)
# Another build of torch than PyPI's: cpu, cu126, rocm6.4, ... or auto, as uv's --torch-backend.
TORCH  ?=
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python --no-deps,$(PIP))

.DEFAULT_GOAL := help
.PHONY: benchmark gpu report-diff loading verdicts help setup demo test test-slow test-slurm lint camvid parity rehearsal hooks lock clean clean-demo

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## set up .venv (about 6 GB: torch with CUDA; with TORCH=cpu about 2 GB)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {v.major}.{v.minor}; try: make PYTHON=python3.12 ...") if v < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
ifeq ($(TORCH),)
	@[ "$$(uname)" != Linux ] || command -v nvidia-smi >/dev/null || \
	  echo "no NVIDIA GPU is seen here: for an environment without CUDA, a third of the size, stop and run: make setup TORCH=cpu"
	$(INSTALL) --require-hashes --requirement requirements.lock
else
	awk '/^[a-z]/ {keep = !/^(torch|triton|cuda-|nvidia-)/ || /^nvidia-ml-py/} keep' requirements.lock > $(VENV)/rest.txt
	$(INSTALL) --require-hashes --requirement $(VENV)/rest.txt
	@echo "torch for $(TORCH) comes from PyTorch's own index; the lock holds no hash of that build: everything else was checked"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --torch-backend $(TORCH) \
	  $$(grep -oE '^torch(vision)?==[0-9.]+' requirements.lock)
endif
	$(INSTALL) --no-build-isolation --editable .
	@touch $(READY)

demo: $(READY)  ## every stage on generated data: 12 rows in minutes on a CPU
	@$(BIN)/python -m pipelines.demo

test: $(READY)  ## the tests (fast ones; add ARGS="-m slow" for the others)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slurm: $(READY)  ## a sweep on real Slurm: two emulated nodes (needs root and apt-get install slurm-wlm)
	@$(BIN)/python -m pytest tests/slurm -m slurm -s -rs

test-slow: $(READY)  ## the slow tests
	@$(BIN)/python -m pytest -m slow

lint: $(READY)  ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

camvid: $(READY)  ## CamVid from scratch (CAMVID=folder for local images): full schedule on a GPU, short on a CPU
	@CAMVID="$(CAMVID)" $(BIN)/python -m pipelines.camvid

parity: $(READY)  ## compare with the peers, in an environment of their own; writes reports/parity.md
	@$(BIN)/python -m benchmarks.parity

rehearsal: $(READY)  ## let mmsegmentation and sssegmentation train on CamVid (CAMVID=folder) and reproduce them; hours
	@CAMVID="$(CAMVID)" $(BIN)/python -m benchmarks.rehearsal

loading: $(READY)  ## training images a second on one core, beside mmsegmentation's
	@$(BIN)/python -m benchmarks.speed time --what loading

report-diff: $(READY)  ## how the metrics differ from BASE (default main), as markdown for a pull request
	@$(BIN)/dvc metrics diff --md $(or $(BASE),main)

benchmark: $(READY)  ## speed beside mmsegmentation on this machine, which must be idle: half an hour on 2 cores
	@$(BIN)/python -m benchmarks.speed time --repeat $(or $(REPEAT),3)

gpu: $(READY)  ## prove and time everything on one GPU, in BUDGET seconds (default 1200); writes reports/gpu.md
	@$(BIN)/python -m benchmarks.gpu --budget $(or $(BUDGET),1200)

verdicts: $(READY)  ## simulate the verdicts' error rates; writes reports/verdict-simulation.md
	@$(BIN)/python -m benchmarks.verdict_simulation

hooks: $(READY)  ## install the git hooks
	@$(BIN)/pre-commit install

lock: $(READY)  ## write requirements.lock for what pyproject.toml asks for (ARGS=--upgrade for the newest versions)
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --output-file requirements.lock $(ARGS) pyproject.toml

clean-demo:  ## remove the demo's workspace
	rm -rf build/demo

clean: clean-demo  ## remove everything that can be made again, but no data and no trained weights
	-find build -mindepth 1 -maxdepth 1 ! -name rehearsal -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache
