# `make` lists the targets. Everything is installed into .venv, in the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export HF_HUB_DISABLE_TELEMETRY := 1
# The exporter of a tokenizer's parallel threads warns when the loader forks; the demo's batches are small.
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help demo test check bench report compiled build info clean

help: ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): constraints.txt pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*.cpp csrc/fastcse/*.hpp csrc/fastcse/transforms/*.hpp)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel pybind11 cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
		-e '.[train,mining,demo,test,bench,dev]'
	@touch $(STAMP)

build: $(STAMP) ## make .venv, install everything, compile the C++ module

demo: $(STAMP) ## the main job on text that every installation has: train, score, compare, draw
	$(BIN)/fastcse demo

test: $(STAMP) ## all tests that need no GPU
	$(BIN)/pytest -n 2

check: $(STAMP) ## lint: ruff, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/fastcse/*.hpp csrc/fastcse/transforms/*.hpp

bench: $(STAMP) ## loss benchmark beside eager, torch.compile and three bare matrix products
	$(BIN)/pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds --benchmark-sort=fullname
	$(BIN)/python -m benchmarks.loss --output benchmarks/results/loss_cpu.json

report: $(STAMP) ## README tables and figure from the files in benchmarks/results
	$(BIN)/python -m benchmarks.report

compiled: $(STAMP) ## compile the Triton kernels for sm_80, sm_90, sm_100 without a GPU and list their cost
	$(BIN)/python -m benchmarks.compiled --output benchmarks/results/compiled.csv

info: $(STAMP) ## which backends run here, and why the others do not
	$(BIN)/fastcse info

clean: ## remove .venv and what was built
	rm -rf .venv build *.egg-info fastcse/*.so
