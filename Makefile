# Every command of the project. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
RUN := PYTHONPATH=e2e $(PYTHON)
UV = .venv/bin/uv
ENGINE := server/millrace_server/engine
NATIVE := $(ENGINE)/libnative.so

.PHONY: help env lock generate lint fast e2e e2e-long test cluster images images-push demo run bench-engine bench-http bench-soak bench-operator bench-scaling clean distclean

help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env: .venv/.ready $(NATIVE) ## the Python environment in .venv, from the locked and hashed requirements, and the engine's native step

.venv/bin/uv: requirements/uv.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 is older than 3.11: put a newer one on PATH"; exit 1; }
	@python3 -m venv .venv || { echo "python3 -m venv failed: on Debian and Ubuntu, apt-get install python3-venv"; exit 1; }
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@

.venv/.ready: .venv/bin/uv requirements/dev.txt pyproject.toml
	@echo "environment: .venv from requirements/dev.txt (PyTorch with its CUDA libraries: about 6 GB, cached by uv)"
	@$(UV) pip sync --quiet --python $(PYTHON) --require-hashes requirements/dev.txt requirements/uv.txt
	@$(UV) pip install --quiet --python $(PYTHON) --no-deps --no-build-isolation --editable .
	@touch $@

$(NATIVE): .venv/.ready $(wildcard server/native/*)
	@server/native/build $(PYTHON) $(ENGINE)

lock: .venv/bin/uv ## write requirements/*.txt anew from pyproject.toml
	@requirements/lock

generate: env ## write the CRD, its field reference, the chart's schema and manifests/install.yaml from api.py
	@HELM=$$($(RUN) -m cluster tool helm) $(PYTHON) -m millrace_operator.generate

lint: env ## ruff, mypy, the import contracts, and whether generated files are fresh
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check --quiet . || { echo "some files are not formatted: run .venv/bin/ruff format ."; exit 1; }
	@$(PYTHON) -m mypy
	@$(PYTHON) -m mypy e2e # apart from tests/, which has a conftest.py of its own
	@.venv/bin/lint-imports
	@HELM=$$($(RUN) -m cluster tool helm) $(PYTHON) -m millrace_operator.generate --check

fast: env ## the fast tests: pure ones, a real API server without nodes, a real server process
	@$(PYTHON) -m pytest tests -n 2 --dist loadfile $(ARGS)

e2e: env ## the tests on a whole Kubernetes
	@$(PYTHON) -m pytest e2e $(ARGS)

e2e-long: env ## the rows that need real lengths of time
	@$(PYTHON) -m pytest e2e --long $(ARGS)

test: ## everything that CI runs; E2E=0 leaves out the tests that need a cluster
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory fast
	@if [ "$${E2E:-1}" = 0 ]; then echo "e2e: left out because E2E=0"; else $(MAKE) --no-print-directory e2e; fi

cluster: env ## a real Kubernetes (NODES=3: of so many nodes); its kubeconfig is .cluster/kubeconfig
	@$(RUN) -m cluster up $(NODES)

images: env ## build both images and print their names
	@$(RUN) -m cluster.images

images-push: env ## build both images, push them and print how to install them: make images-push REGISTRY=registry.example.com/team
	@$(RUN) -m cluster.images --push "$(REGISTRY)"

demo: env ## cluster, images, model, operator, an InferenceService, answers, scaling (MODEL=hf://… for a hub model)
	@MODEL="$(MODEL)" $(RUN) -m demo

run: env ## the server alone on this machine; downloads the model once: make run MODEL=Qwen/Qwen2.5-0.5B-Instruct
	@$(RUN) -m demo.alone "$(MODEL)"

bench-engine: env ## our engine against transformers on this machine, a quarter of an hour (ARGS=--quick: two minutes)
	@PYTHONPATH=bench $(PYTHON) -m engine_benchmark $(ARGS)

bench-http: env ## the HTTP front on a mock engine, overload, the cache; five minutes
	@PYTHONPATH=bench:e2e $(PYTHON) -m http_benchmark $(ARGS)

bench-soak: env ## ten minutes of everything at once on the demo model: does memory grow?
	@PYTHONPATH=bench:e2e $(PYTHON) -m http_benchmark --kinds soak $(ARGS)

bench-operator: env ## the operator with 1, 100 and 1000 services on a real API server, 25 minutes (ARGS="--idle-minutes 0": 15)
	@PYTHONPATH=bench:e2e $(PYTHON) -m operator_benchmark $(ARGS)

bench-scaling: env ## a load step on the cluster, under our autoscaler and under a plain HPA; twenty minutes
	@PYTHONPATH=bench:e2e $(PYTHON) -m scaling_benchmark $(ARGS)

clean: ## take the cluster down without a trace; caches stay
	@if [ -x $(PYTHON) ]; then $(RUN) -m cluster down; \
	elif [ -e .cluster/provider ]; then echo "a cluster is up, and .venv, which could take it down, is gone: make env, then make clean"; exit 1; fi

distclean: clean ## also remove .venv, build and the cache outside the checkout
	@if [ -x $(PYTHON) ]; then $(RUN) -m cluster purge; fi
	@rm -rf .venv build .cluster
