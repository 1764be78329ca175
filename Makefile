# Everything a developer does, by one word. `make` alone lists the words.
#
# Needs Python 3.11 or newer with its venv module, and make; no compiler. All of it goes into .venv, dist and build
# below this folder. Variables: PYTHON (the interpreter that .venv is made from), ONLY and ROUNDS (for bench), SECONDS and ONLY (for fuzz), PREFIX
# (for install), LADING_CORPUS (folder of the benchmark's layers).

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
CODE := lading objects catalog materialize cli tests bench tools
PREFIX ?= $(if $(filter 0,$(shell id -u)),/usr/local,$(HOME)/.local)

# One pip set-up for all targets: quiet, and no word about newer releases of pip itself.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check --no-warn-script-location
ifeq ($(shell id -u),0)
export PIP_ROOT_USER_ACTION := ignore
endif

.DEFAULT_GOAL := help
.PHONY: help venv demo test faults powerloss fuzz hostile check interleave lint types imports format bench corpus build-binary provision-test vm-test install clean
# A recipe that fails halfway must not leave a stamp behind that says it worked.
.DELETE_ON_ERROR:

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/\1|\2/' | awk -F'|' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(VENV)/.ready  ## store two real trees, run a program from them, delete, collect
	$(PY) tools/demo.py

test: $(VENV)/.ready  ## run the tests in parallel (as root: those that mount, too)
	$(PY) -m pytest -n auto --dist loadfile

powerloss: $(VENV)/.ready  ## lose power thousands of times (root; half an hour)
	LADING_POWERLOSS=deep $(PY) -m pytest -n auto --dist load tests/powerloss

faults: $(VENV)/.ready  ## break every operation at its system calls: kills, errors, short writes (root; LADING_FAULTS_REPORT, _SEED)
	$(PY) -m tests.faults.campaign

check: lint types imports test  ## lint, formatting, types, import contract, tests

interleave: $(VENV)/.ready  ## collections beside ingests, interleaved at every commit (LADING_INTERLEAVINGS, 10000)
	LADING_INTERLEAVINGS=$${LADING_INTERLEAVINGS:-10000} $(PY) -m pytest -n auto tests/interleave

lint: $(VENV)/.ready  ## style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.ready  ## mypy, strict
	$(PY) -m mypy
	$(PY) -m mypy bench tools

imports: $(VENV)/.ready  ## the rooms' import contract
	$(PY) tools/imports.py

format: $(VENV)/.ready  ## rewrite the code in the one format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

fuzz: $(VENV)/.fuzz  ## fuzz what reads bytes from outside (SECONDS= of each target, ONLY=)
	nice $(PY) -m tests.fuzz.run --seconds $(or $(SECONDS),60) $(if $(ONLY),--only $(ONLY))

hostile: $(VENV)/.ready  ## every hostile layer through every door, shown in every way (root)
	LADING_HOSTILE=all $(PY) -m pytest -n auto --dist loadfile tests/hostile

bench: $(VENV)/.bench corpus  ## measure beside containers-storage, write docs/benchmarks.* (root; ONLY=, ROUNDS=)
	$(PY) -m bench.run $(if $(ONLY),--only $(ONLY)) $(if $(ROUNDS),--rounds $(ROUNDS))

corpus: $(VENV)/.ready  ## build the benchmark's eight layers where they are missing (root)
	bench/corpus.sh "$${LADING_CORPUS:-build/corpus}"

build-binary: $(VENV)/.ready  ## make dist/lading, one file that needs no Python, and try it
	VENV=$(VENV) tools/build-binary.sh
	tools/try-binary.sh dist/lading

provision-test:  ## run the virtual machine's provisioning in a fresh Debian 12 chroot (root)
	tools/provision-test.sh

vm-test:  ## run `make check` in the virtual machine (VAGRANT_PROVIDER: libvirt, virtualbox)
	vagrant up --provision --provider "$${VAGRANT_PROVIDER:-libvirt}"
	vagrant rsync
	vagrant ssh -c 'cd /lading && sudo CI=true make check VENV=/var/tmp/lading-venv'

install:  ## install the command for this machine, or for this user (PREFIX)
	$(PYTHON) -m venv --clear "$(PREFIX)/lib/lading"
	"$(PREFIX)/lib/lading/bin/python" $(PIP_INSTALL) .
	mkdir -p "$(PREFIX)/bin"
	for name in lading lading-compat; do ln -sf ../lib/lading/bin/$$name "$(PREFIX)/bin/$$name"; done
	@echo "installed $(PREFIX)/bin/lading"

clean:  ## remove everything that was made here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

venv: $(VENV)/.ready

# Made anew when the dependencies change: an environment that grew by steps hides what is missing from the list.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one by PYTHON=..." >&2; exit 1; }
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV) || \
	  { echo "Python's venv module is needed; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(PY) $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.fuzz: $(VENV)/.ready
	@$(PY) $(PIP_INSTALL) --editable '.[dev,fuzz]'
	@touch $@

$(VENV)/.bench: $(VENV)/.ready
	@$(PY) $(PIP_INSTALL) --editable '.[dev,bench]'
	@touch $@
