# Every target does all of its own set-up and can be repeated.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
# How often the lab's guests go there and back.
export TIMES ?= 2
VENV := .venv
BIN := $(VENV)/bin
LAB := vagrant/lab
# The lab's address is reached from its own network namespace, where it has one.
IN_LAB := $(LAB) exec
# Tests that need no node run in a process for each processor.
AT_ONCE := -n auto
# A pair of hosts is each test's own, and its tests wait more than they work, as those of a node's scripts do.
PAIRS := -n 4 --dist worksteal
# But for those with a mount or a loop device: these are everybody's.
UNIT := $(BIN)/pytest tests/unit --ignore tests/unit/storage $(AT_ONCE) \
	&& $(BIN)/pytest tests/unit/storage -m "not devices" $(PAIRS) && $(BIN)/pytest tests/unit/storage -m devices

.PHONY: help
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ready ## two nodes, a guest, a live migration there and back, the proof
	@$(IN_LAB) $(BIN)/python -m vagrant.demo

.PHONY: chaos
chaos: ready ## two disasters live on the two nodes: what bare commands end with, and what lvmigrate does; ten minutes
	@$(IN_LAB) $(BIN)/python -m vagrant.chaos

.PHONY: test
test: ready ## every layer of the tests; of the pair's and the lab's what is not marked as long
	$(UNIT)
	$(BIN)/pytest tests/simulator $(AT_ONCE)
	$(BIN)/pytest tests/service $(AT_ONCE)
	$(BIN)/pytest tests/page $(AT_ONCE)
	$(BIN)/pytest tests/package
	$(BIN)/pytest tests/pair -m "not long" $(PAIRS)
	$(IN_LAB) env TIMES=$${TIMES:-1} $(BIN)/pytest tests/lab -m "not long" --durations 12

.PHONY: test-all
test-all: ready ## every test there is: an hour and more
	$(UNIT)
	$(BIN)/pytest tests/simulator $(AT_ONCE)
	$(BIN)/pytest tests/service $(AT_ONCE)
	$(BIN)/pytest tests/page $(AT_ONCE)
	$(BIN)/pytest tests/package
	$(BIN)/pytest tests/pair $(PAIRS)
	$(IN_LAB) $(BIN)/pytest tests/lab

.PHONY: test-unit
test-unit: venv ## the pure parts, lint and types: seconds
	$(UNIT)

.PHONY: test-simulator
test-simulator: venv ## two nodes in memory, every call of a move x every fault: a minute or two
	$(BIN)/pytest tests/simulator $(AT_ONCE)

.PHONY: test-package
test-package: venv ## wheel, sdist and Debian package, each built and installed where nothing else is: a minute
	$(BIN)/pytest tests/package

.PHONY: deb
deb: venv ## a Debian package for this machine's release, with its own environment, into dist/
	@debian/build $(BIN) dist

.PHONY: test-service
test-service: venv ## the service as a process, killed, stopped and asked by everybody: a minute or two
	$(BIN)/pytest tests/service $(AT_ONCE)

.PHONY: test-page
test-page: venv ## the service's page in a real browser, with a real move on the pair; LVMIGRATE_PICTURES=DIR: with pictures
	$(BIN)/pytest tests/page $(AT_ONCE)

.PHONY: campaign
campaign: venv ## every tasklet x every call x every fault, and pairs of faults (docs/simulator.md): an hour
	$(BIN)/python -m tests.campaign --others 4 --pairs 10
	LVMIGRATE_MACHINE_EXAMPLES=2000 $(BIN)/pytest tests/simulator/test_machine.py

.PHONY: campaign-mutants
campaign-mutants: venv ## take one line away that keeps a law, and see that it is noticed; then the next
	$(BIN)/python -m tests.mutants

.PHONY: campaign-all
campaign-all: venv ## the same in every variant of the world, and more pairs
	$(BIN)/python -m tests.campaign --pairs 200

.PHONY: campaign-lab
campaign-lab: ready ## kills, cuts and power cuts at every step of real moves between the two nodes: as many as 25 minutes hold
	@$(IN_LAB) $(BIN)/python -m tests.lab.campaign

.PHONY: test-pair
test-pair: venv ## two real libvirt daemons on this machine, faults and all: a minute or two
	$(BIN)/pytest tests/pair $(PAIRS)

.PHONY: test-lab
test-lab: ready ## two nodes with real DRBD and real libvirt: minutes; TIMES=5: there and back five times, not two
	$(IN_LAB) $(BIN)/pytest tests/lab

.PHONY: bench-storage
bench-storage: ready ## events per second and their latency; opening and closing a dual-primary, against the same by hand
	@$(IN_LAB) $(BIN)/python -m tests.bench.storage

.PHONY: bench-hv
bench-hv: venv ## a move against virsh migrate of the same guest, in turn; aborts; a controller with 20 moves; on the pair
	@$(BIN)/python -m tests.bench.hv

.PHONY: bench-lab
bench-lab: ready ## a move between the two nodes against the same by hand, and by the seed's way
	@$(IN_LAB) $(BIN)/python -m tests.bench.lab

.PHONY: bench-fleet
bench-fleet: venv ## the plan for 1,000 nodes with 20,000 guests; a drain of 20 guests against virsh, on the pair
	@$(BIN)/python -m tests.bench.fleet
	@$(BIN)/python -m tests.bench.drain

.PHONY: bench-reaction
bench-reaction: venv ## from a kernel's word to the next command leaving; the start of a command: two minutes
	@$(BIN)/python -m tests.bench.reaction

.PHONY: bench-growth
bench-growth: venv ## CPU, memory, threads, files with 1 to 64 disks, and with 1 to 20 moves at once on the pair; pictures
	@$(BIN)/python -m tests.bench.growth

.PHONY: bench-service
bench-service: venv ## 200 clients who watch 20 moves: how late an event is, and what the service needs: two minutes
	@$(BIN)/python -m tests.bench.service

# One after the other, whatever becomes of the one before: each says of its goals whether they hold.
BENCHES := bench-storage bench-hv bench-fleet bench-service bench-reaction bench-growth bench-lab

.PHONY: bench
bench: ready ## every figure, with the lab's: an hour or so, on a machine that does nothing else
	@failed=""; for one in $(BENCHES); do $(MAKE) --no-print-directory $$one || failed="$$failed $$one"; done; \
	[ -z "$$failed" ] || { echo "a goal does not hold, or nothing was measured:$$failed" >&2; exit 1; }

.PHONY: soak
soak: venv ## MINUTES (30) of moves, aborts and faults at random on the pair: nothing leaks; pictures
	@$(BIN)/python -m tests.bench.soak --minutes $${MINUTES:-30}

.PHONY: lab-up
lab-up: ## bring the two nodes up (vagrant/README.md)
	@$(LAB) up

.PHONY: lab-down
lab-down: ## take the two nodes of this checkout down
	@$(LAB) down

.PHONY: format
format: venv ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: docs
docs: venv ## the site, into build/site/html, and the pages in docs/ that are made from the code; a warning is an error
	$(BIN)/python -m docs.decisions
	$(BIN)/python -m docs.codes
	$(BIN)/python -m docs.keys
	$(BIN)/python -m docs.site build/site

.PHONY: venv
venv: $(VENV)/stamp ## the virtual environment alone

# The environment and the nodes are made side by side, once the machine has its packages.
.PHONY: ready
ready: setup
	@$(MAKE) --no-print-directory -j2 venv lab-up

.PHONY: setup
setup:
	@$(LAB) setup

$(VENV)/stamp: pyproject.toml | setup
	@echo "venv: making $(VENV) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable . --group dev
	@touch $@
	@echo "venv: made"
