# Logic lives in tools/; here are only the names. Any Python from 3.11 on: make PYTHON=python3.12 test
PYTHON ?= python3
# How long the demo runs, or the fuzzer, in seconds; empty is until Ctrl-C.
SECONDS ?=
# How long the soak runs, in minutes.
MINUTES ?= 30
# How many machines the lab has.
N ?= 3
# Two test processes more than cores, for tests mostly wait; a file's tests in the same one, in the order that
# tests/conftest.py gives.
PYTEST_ARGS ?= -n $(shell echo $$(($$(nproc) + 2))) --dist loadfile --no-loadscope-reorder

export PYTHON
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help demo test lab lab-down lab-test soak check proto lock bench fuzz dist clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: ## a collector, this machine and 20 simulated hosts, live (SECONDS=20: end by itself)
	@sh tools/venv.sh collector
	@.venv/bin/python tools/demo.py $(SECONDS)

test: ## install what is missing, check and run all tests
	@sh tools/packages.sh
	@$(MAKE) check
	@.venv/bin/python -m pytest $(PYTEST_ARGS)

lab: ## real machines with systemd and sshd, which stay until make lab-down (N=5; as root)
	@sh tools/packages.sh lab
	@sh tools/venv.sh dev
	@.venv/bin/python -m tests.lab up $(N)

lab-down: ## end the machines of make lab
	@.venv/bin/python -m tests.lab down

lab-test: ## run the tests on real machines, and say how long what took (N=3: on fewer than 20; as root)
	@sh tools/packages.sh lab
	@sh tools/venv.sh dev
	@.venv/bin/python -m tests.lab rootfs
	@rm -f var/lab/summary
	@LAB_MACHINES=$(if $(filter file,$(origin N)),20,$(N)) .venv/bin/python -m pytest tests/lab $(LAB_ARGS); \
		code=$$?; cat var/lab/summary; exit $$code

soak: ## 200 agents and every fault there is, at random; then a ledger is compared (MINUTES=30)
	@sh tools/packages.sh
	@sh tools/venv.sh dev
	@.venv/bin/python -m tests.soak --minutes $(MINUTES) $(SOAK_ARGS)

check: ## format, lint, types, layers, wire definition, stubs, scripts, locks
	@sh tools/venv.sh dev
	@sh tools/check.sh

proto: ## generate the stubs from the wire definition
	@sh tools/venv.sh dev
	@sh tools/stubs.sh write

lock: ## lock the dependencies anew (UPGRADE=1: the newest versions)
	@sh tools/venv.sh dev
	@PATH=$(CURDIR)/.venv/bin:$$PATH python tools/locks.py write $(if $(UPGRADE),--upgrade)

bench: ## measure everything beside what it has to compare with; a table (BENCH_ARGS="--quick ingest": less)
	@sh tools/venv.sh dev
	@.venv/bin/python -m bench $(BENCH_ARGS)

fuzz: ## feed the decoding of agents' messages with whatever breaks it (SECONDS=60: end by itself)
	@sh tools/venv.sh dev
	@.venv/bin/python -m tests.wire.fuzz_reports -timeout=5 $(if $(SECONDS),-max_total_time=$(SECONDS))

dist: ## the wheel, and archives for machines without a registry (PYTHONS="3.11 3.12" ARCHS="x86_64 aarch64")
	@sh tools/venv.sh dev
	@sh tools/dist.sh

clean: ## remove everything that was made here
	rm -rf .venv node_modules var build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
