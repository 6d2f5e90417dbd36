# make compare | test | faults | check | matrix | docs | clean. Needs Python 3.11 or later and the network;
# everything else is put into .venv.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := src adapters contract_tests tests docs examples containers

.PHONY: compare test faults check matrix docs clean

compare: .venv/stamp
	$(BIN)/anymq compare

# Tests mostly wait, so that four share two processors well; a file's broker serves all its tests.
# The columns of SQS and Pub/Sub take ten minutes more: `make compare` has them, and their adapters'
# own tests and mutants run here.
COLUMNS := memory rabbitmq rabbitmq-classic redis kafka
test: check
	$(BIN)/pytest -n 4 --dist loadfile tests
	$(BIN)/pytest contract_tests $(COLUMNS:%=--anymq-column=%)

# At full length: 100,000 messages and 20 faults, brokers paused for 30 s, a minute of crashes, a
# slow network and alarms for longer than silence may last.
faults: .venv/stamp
	ANYMQ_FAULTS=long $(BIN)/pytest -v --durations=0 tests/test_storm.py \
	  tests/test_rabbitmq_alarms.py tests/test_kafka_sending.py tests/test_kafka_storm.py \
	  contract_tests/faults.py

check: .venv/stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(SOURCES)

# The matrix in README.md and the record that `anymq diff` reads, from one run of all columns.
RECORD := src/anymq/testing/last-run.json
matrix: .venv/stamp
	$(BIN)/anymq compare --markdown README.md --record $(RECORD)

# What the documentation takes from the capability tables.
docs: .venv/stamp
	$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv lives in the environment itself, so that nothing is installed into the machine; the lock
# file does not name it, hence --inexact, which leaves it there.
.venv/stamp: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "anymq needs Python 3.11 or later; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory python3-venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv sync --quiet --frozen --all-extras --inexact
	@touch $@

# Debian ships the module that makes environments in a package of its own.
.PHONY: python3-venv
python3-venv:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3-venv; \
	else \
	  echo "$(PYTHON) has no venv module; as root: apt-get install python3-venv" >&2; exit 1; \
	fi
