# Targets are files wherever they can be, so that nothing is made twice.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.complete

DATA := data/openclipart/train.csv
RUN := runs/quickstart
CONFIG := training/configs/quickstart.toml
REPOSITORY := build/model_repository
EXPORTED := $(REPOSITORY)/classifier/config.pbtxt
# One for GPUs: other precision, other instances, other batches.
GPU_REPOSITORY := build/gpu_repository
GPU_EXPORTED := $(GPU_REPOSITORY)/classifier/config.pbtxt

export DIPTYCH_TAG ?= $(shell cat VERSION)
PROFILE ?= $(if $(wildcard /dev/nvidiactl),gpu,cpu)
COMPOSE := docker compose --file docker/compose.yaml

.PHONY: help setup demo check fast check-client check-training test test-faults test-all lint format serve loadtest bench bench-gpu overhead \
	lint-kubernetes kubernetes-rules images up down prove-images clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(SETUP) ## install everything into .venv (5 GB: PyTorch with CUDA, and the embedded tritonserver)

$(SETUP): VERSION pyproject.toml training/pyproject.toml serving/pyproject.toml training/constraints.txt client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Diptych needs Python 3.10 or later, found $$($(PYTHON) --version). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "Debian and Ubuntu keep venv apart: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/pip install --disable-pip-version-check --quiet --upgrade 'pip>=25.1' # knows --group
	$(BIN)/pip install --disable-pip-version-check --quiet --progress-bar on --constraint training/constraints.txt \
		--group dev --group operations --group bench --group loadtest --editable 'client[local,score,demo,tracing,heic]' \
		--editable 'serving[tools,embedded,openvino]' --editable 'training[quickstart,doubt,lora,embedded]'
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13))' || \
		echo "$$($(BIN)/python --version) has no embedded tritonserver: make demo, make test and diptych serve need Python 3.10 to 3.12. To get one: uv python install 3.12; rm -r .venv; make setup PYTHON=\$$(uv python find 3.12)"
	@touch $@

$(DATA): | $(SETUP)
	@$(BIN)/diptych data openclipart --out data/openclipart

# The weights, and not metrics.json, which evaluation writes anew each time.
$(RUN)/model.safetensors: $(DATA) $(CONFIG)
	@$(BIN)/diptych train $(CONFIG) --out $(RUN)

$(EXPORTED): $(RUN)/model.safetensors
	@$(BIN)/diptych export $(RUN) --to $(REPOSITORY)
	@$(BIN)/diptych release activate $(REPOSITORY)

$(GPU_EXPORTED): $(RUN)/model.safetensors
	@$(BIN)/diptych export $(RUN) --to $(GPU_REPOSITORY) --target gpu
	@$(BIN)/diptych release activate $(GPU_REPOSITORY)

demo: $(EXPORTED) ## the main job on real data: train, evaluate, export, serve, classify over gRPC and HTTP
	@$(BIN)/diptych evaluate $(RUN)
	@$(BIN)/diptych demo $(RUN) $(REPOSITORY) --plot prediction.png

# A test's directory says what it needs. These need neither torch nor a server. e2e/ starts a tritonserver; faults/
# kills and overloads one, fills disks and starts containers, which takes long; the rest loads torch.
FAST_TESTS := tests/client tests/serving tests/loadtest tests/docker tests/docs
FAULT_TESTS := tests/faults
# Many tests wait for servers or for a deadline, so two cores have work for three files at a time, and for four of
# the fast ones; faults overload a server, so two. One thread each: with more, the processes' threads wait for one
# another.
TEST_WORKERS ?= 3
# A process of pytest that crashes fails its test and is not replaced: with a new one, the run would never end.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --max-worker-restart 0

check: $(SETUP) ## the linters beside the fast tests: neither torch nor a server
	@$(MAKE) --no-print-directory --jobs 2 lint fast

fast: TEST_WORKERS = 4
fast:
	@$(PYTEST) --quiet $(FAST_TESTS)

test: $(SETUP) ## all tests but the faults; they load torch and start the real tritonserver
	@$(PYTEST) --ignore $(FAULT_TESTS)

test-faults: TEST_WORKERS = 2
test-faults: $(SETUP) ## the tests that kill, overload and contain servers: long
	@$(PYTEST) $(FAULT_TESTS)

test-all: test test-faults ## all tests

# The client promises more Pythons and NumPys than the rest. Its tests need no server, no torch and no other package here.
CLIENT_CHECK = build/client-check-$(notdir $(PYTHON))
check-client: ## the client's tests by themselves on another Python: make check-client PYTHON=python3.10
	@$(PYTHON) -m venv --clear $(CLIENT_CHECK)
	@$(CLIENT_CHECK)/bin/pip install --disable-pip-version-check --quiet './client[heic,score]' pytest
	@$(CLIENT_CHECK)/bin/python -c 'import sys, numpy; print("Python", *sys.version.split()[:1], "with NumPy", numpy.__version__)'
	@$(CLIENT_CHECK)/bin/python -m pytest -q -p no:cacheprovider tests/client

TRAINING_CHECK = build/training-check-$(notdir $(PYTHON))
check-training: ## train, evaluate and export on a Python that has no embedded server: make check-training PYTHON=python3.13
	@$(PYTHON) -m venv --clear $(TRAINING_CHECK)
	@$(TRAINING_CHECK)/bin/pip install --disable-pip-version-check --quiet --constraint training/constraints.txt \
		./client './serving[tools]' ./training pytest
	@$(TRAINING_CHECK)/bin/python -c 'import sys, numpy; print("Python", *sys.version.split()[:1], "with NumPy", numpy.__version__)'
	@$(TRAINING_CHECK)/bin/python -m pytest -q -p no:cacheprovider tests/training/test_export.py

lint: $(SETUP) ## ruff, mypy and import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/mypy --strict --cache-dir .mypy_cache/strict -p diptych_client
	@$(BIN)/lint-imports --no-logo --no-cache > /dev/null || $(BIN)/lint-imports --no-logo --no-cache

format: $(SETUP) ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

serve: $(EXPORTED) ## serve the last export and stay
	@$(BIN)/diptych serve $(REPOSITORY)

loadtest: $(EXPORTED) ## load the served model; fail on a breach of loadtest/slo.toml (LOADTEST="--shape step ...")
	@$(BIN)/python -m loadtest --repository $(REPOSITORY) $(LOADTEST)

bench: $(SETUP) $(DATA) ## speed beside the article's path, the ceiling and other servers: bench/results/bench.json
	@$(BIN)/python -m bench.speed $(BENCH)

bench-gpu: $(SETUP) $(DATA) ## the same on a GPU, in fp16; has not run yet
	@$(BIN)/python -m bench.speed --target gpu $(BENCH)

overhead: $(EXPORTED) ## what the client costs over raw tritonclient
	@$(BIN)/python -m bench.overhead --repository $(REPOSITORY)

# Tools that do not go into .venv: checkov pins a hundred packages, KServe's SDK brings as many.
KUBERNETES_LINT := docker/kubernetes/lint
KUBERNETES_TOOLS := build/kubernetes/tools

$(KUBERNETES_TOOLS)/.complete: $(KUBERNETES_LINT)/requirements.txt
	@$(PYTHON) -m venv --clear $(KUBERNETES_TOOLS)
	$(KUBERNETES_TOOLS)/bin/pip install --disable-pip-version-check --quiet --requirement $<
	$(KUBERNETES_TOOLS)/bin/pip install --disable-pip-version-check --quiet --no-deps kserve==0.21.0
	@touch $@

kubernetes-rules: $(SETUP) ## rules, dashboard and proxy of docker/ once more, as objects for docker/kubernetes
	@$(BIN)/python docker/kubernetes/components/monitoring/generate.py
	@$(BIN)/python docker/kubernetes/components/proxy/generate.py

lint-kubernetes: $(KUBERNETES_TOOLS)/.complete ## policies and custom resources of docker/kubernetes; the schemas are in `make test`
	@mkdir -p build/kubernetes/rendered
	@for overlay in docker/kubernetes/overlays/* $(KUBERNETES_LINT)/everything $(KUBERNETES_LINT)/proxied; do \
		kubectl kustomize $$overlay > build/kubernetes/rendered/$$(basename $$overlay).yaml; \
	done
	@$(KUBERNETES_TOOLS)/bin/python $(KUBERNETES_LINT)/custom_resources.py build/kubernetes/rendered/*.yaml
	@$(KUBERNETES_TOOLS)/bin/checkov --config-file $(KUBERNETES_LINT)/checkov.yaml --directory build/kubernetes/rendered

images: ## build the container images (BUILD_ARGS="--build-arg TRITON_IMAGE=...")
	@for image in serving client training; do \
		file=docker/$$image.Dockerfile; [ -f $$file ] || file=docker/Dockerfile; \
		docker build --file $$file --tag diptych-$$image:$(DIPTYCH_TAG) --build-arg VERSION=$$(cat VERSION) \
			--build-arg REVISION=$$(git describe --always --abbrev=40 --dirty) $(BUILD_ARGS) .; \
	done

# DIPTYCH_REPOSITORY names another repository than the demo's, which is exported for the profile's kind of device.
UP_EXPORTED := $(if $(filter gpu,$(PROFILE)),$(GPU_EXPORTED),$(EXPORTED))
UP_REPOSITORY := $(abspath $(or $(DIPTYCH_REPOSITORY),$(patsubst %/classifier/config.pbtxt,%,$(UP_EXPORTED))))
# The demo's export has an image encoder for each core of this machine.
export DIPTYCH_CPUS ?= $(shell nproc)
up: $(if $(DIPTYCH_REPOSITORY),,$(UP_EXPORTED)) ## server, Prometheus, Grafana and demo page in containers (PROFILE=gpu or cpu)
	@DIPTYCH_REPOSITORY=$(UP_REPOSITORY) $(COMPOSE) --profile $(PROFILE) up --detach --wait

down: ## stop them, the server in good order
	@$(COMPOSE) --profile '*' down

prove-images: $(EXPORTED) ## build and run the images without Docker or NVIDIA's base (root, Debian 12)
	@docker/prove/images.sh $(REPOSITORY)
	@docker/prove/compose.sh $(REPOSITORY)

clean: ## remove what was made, except .venv and the data
	rm -rf build runs prediction.png
