# `make` lists the targets. Everything is installed into .venv, in the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
export HF_HUB_DISABLE_TELEMETRY := 1
# The exporter of a tokenizer's parallel threads warns when the loader forks; the demo's batches are small.
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help demo quick test test-all mutants check bench baseline loss report topk rows kmeans train-bench objectives compiled gpu build info clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): constraints.txt pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*.cpp csrc/*.hpp csrc/fastcse/*.hpp csrc/fastcse/transforms/*.hpp)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel pybind11 cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation \
		-e '.[train,mining,demo,test,bench,dev]'
	@touch $(STAMP)

build: $(STAMP) ## make .venv, install everything, compile the C++ module

demo: $(STAMP) ## the main job on text that every installation has: train, score, compare, draw
	$(BIN)/fastcse demo

quick: $(STAMP) ## the tests to run after every change: a minute on two cores
	$(BIN)/pytest tests/quick -n 2 -m "not whole"

test: $(STAMP) ## the tests that hold a change: a quarter of an hour on two cores
	$(BIN)/pytest -n 2 -m "not whole"

test-all: $(STAMP) ## every test that needs no GPU, also what only a night has time for
	$(BIN)/pytest -n 2

mutants: $(STAMP) ## faults put into a copy of the sources, one at a time, and the test that sees each (NAMES="a b")
	$(BIN)/python tests/mutants.py $(NAMES)

check: $(STAMP) ## lint: ruff, clang-format; lengths and packed code are listed and never fail
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.hpp csrc/fastcse/*.hpp csrc/fastcse/transforms/*.hpp
	$(BIN)/python tests/alarms.py

SUITE := $(BIN)/pytest benchmarks --benchmark-only --benchmark-quiet --benchmark-json=build/bench.json

bench: $(STAMP) ## losses in turns with eager and bare products; fails where a ratio is 15% worse than its baseline
	@mkdir -p build
	$(SUITE)
	$(BIN)/python -m benchmarks.regression --file build/bench.json

baseline: $(STAMP) ## save the ratios of this kind of machine, for `make bench` to hold later runs against
	@mkdir -p build
	$(SUITE)
	$(BIN)/python -m benchmarks.regression --file build/bench.json --save

# One forward and backward of 8192 rows takes seconds, and InfoNCE has nine providers or more: three rounds of it.
loss: $(STAMP) ## losses beside every installed peer: time, memory, accuracy, as JSON and PNG (20 minutes)
	$(TABLE) --loss infonce --n 512,2048,8192 --repeat 3 $(call files,loss_infonce_cpu)
	$(TABLE) --loss focal --n 512,2048,8192 --repeat 9 $(call files,loss_focal_cpu)
	$(TABLE) --loss symmetric --n 2048 $(call files,loss_symmetric_cpu)
	$(TABLE) --loss infonce --n 2048 --repeat 1 --no-memory --data random,clustered,anisotropic --stage early,late \
		--peers "F.linear_cross_entropy,sentence-transformers,sentence-transformers cached" \
		--output benchmarks/results/accuracy_cpu.json
TABLE := $(BIN)/fastcse bench loss --device cpu --d 768
files = --output benchmarks/results/$(1).json --plot benchmarks/results/$(1).png

topk: $(STAMP) ## exact top-k and the miner beside every installed peer, as JSON and PNG
	$(BIN)/fastcse bench topk --device cpu --n 10000 --m 200000 --d 384 --k 32 $(call files,topk_cpu)
	$(BIN)/fastcse bench mining --n 20000 --output benchmarks/results/mining_cpu.json

rows: $(STAMP) ## row-wise operations beside one copy of the same bytes, as JSON and PNG
	$(BIN)/fastcse bench rows --device cpu --n 65536 --d 768 --op quadruplet,normalize,adversarial $(call files,rows_cpu)

kmeans: $(STAMP) ## k-means over all points beside every installed peer, as JSON and PNG
	$(BIN)/fastcse bench kmeans --device cpu --n 100000 --k 1024 --d 384,768 --repeat 3 $(call files,kmeans_cpu)

# A step of 8192 pairs takes minutes.
train-bench: $(STAMP) ## one training step beside sentence-transformers', whole and its loss stage, as JSON and PNG
	$(BIN)/fastcse bench train --device cpu --stage loss --steps 9 --output benchmarks/results/train_loss_cpu.json
	$(BIN)/fastcse bench train --device cpu --steps 3 $(call files,train_cpu)

objectives: $(STAMP) ## HSimCSE and ClusterNS beside InfoNCE, in turns, as JSON
	$(BIN)/python -m benchmarks.studies.objectives hsimcse
	$(BIN)/python -m benchmarks.studies.objectives clusterns

report: $(STAMP) ## README section, benchmarks/RESULTS.md and figures from the files in benchmarks/results
	$(BIN)/python -m benchmarks.report

# On a machine with a GPU nothing is installed: PYTHON must have torch, triton and pytest. WHEELS names a folder of peers'
# wheels, STAGE the stages to run.
gpu: $(if $(DRY),$(STAMP)) ## the GPU lane: device tests, tables, configuration search, counters (DRY=1: interpreter)
	$(if $(DRY),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu $(if $(DRY),--dry) $(if $(WHEELS),--wheels $(WHEELS)) \
		$(if $(STAGE),--stage $(STAGE)) $(if $(AGAIN),--again) $(if $(COMMIT),--commit $(COMMIT))

compiled: $(STAMP) ## compile the Triton kernels for sm_80, sm_90, sm_100 without a GPU and list their cost
	$(BIN)/python -m benchmarks.compiled --output benchmarks/results/compiled.csv

info: $(STAMP) ## which backends run here, and why the others do not
	$(BIN)/fastcse info

clean: ## remove .venv and what was built
	rm -rf .venv build *.egg-info fastcse/*.so
