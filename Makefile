# Two commands do everything on a fresh machine with Python 3.11:
#   make demo   install, train both stages on a synthetic world, evaluate, recommend, report
#   make test   install the test tools and run every test
# make test-faults repeats kills, outages and hostile input at length, about 15 minutes.
# make bench measures speed and memory, about an hour; make bench ARGS=--quick, 3 minutes.

PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-faults servers check bench format clean

demo: .venv/installed
	$(BIN)/adrec demo --out runs/demo

test: .venv/installed-dev servers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-faults: .venv/installed-dev servers
	ADREC_FAULTS=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 7200 \
		tests/faults tests/serving/test_hostile.py

# What tests start: as root on Debian they are installed, elsewhere tests that need them say so.
servers:
	@missing=""; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 \
		|| missing="$$missing postgresql"; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ]; then \
		echo "installing$$missing"; \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
			apt-get install -y -qq --no-install-recommends $$missing >/dev/null) \
			|| echo "could not install$$missing; tests that need them are left out"; \
	fi

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed-dev
	$(BIN)/python benchmarks/all.py $(ARGS)

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv runs

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "adrec needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@ .venv/installed
