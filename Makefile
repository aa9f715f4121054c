# make demo [SONG=path] [STYLE=path]   set up, start everything; cover, separate, analyse and mix a song
# make test                            set up, run every test that needs no GPU
# make fault                           break everything, hundreds of times: half an hour (FAULT_SEED, FAULT_ROUNDS)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUF := .npm/node_modules/.bin/buf
OUT ?= out/demo

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: setup demo up test fault lint format protos release-protos bench lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml clients/python/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable clients/python --editable .
	touch $@

demo: setup
	$(BIN)/python -m servers.local.demo --out "$(OUT)" $(if $(STYLE),--style "$(STYLE)") $(if $(SONG),"$(SONG)")

up: setup
	$(BIN)/contrafact up

# Whole stacks on a machine that does other things, too: what fails once is tried once more, and named at the end.
test: setup
	$(BIN)/pytest -m "not gpu and not fault" --numprocesses 2 --dist loadfile --reruns 1 $(ARGS)

fault: setup
	$(BIN)/pytest tests/fault $(ARGS)

lint: setup $(BUF)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --image build/contrafact.binpb
	$(BUF) lint build/contrafact.binpb --path contrafact
	$(BUF) breaking build/contrafact.binpb --against protos/released.binpb --path contrafact
	git diff --exit-code -- clients/python/src

format: setup
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: setup
	$(BIN)/python protos/generate.py

# At a release: what clients now rely on, against which later changes are checked.
release-protos: setup
	$(BIN)/python protos/generate.py --image protos/released.binpb

bench: setup
	$(BIN)/python -m tests.bench

$(BUF):
	npm install --silent --no-audit --no-fund --no-save --prefix .npm @bufbuild/buf@1.75.0

# Resolve anew what pyproject.toml asks for, in an empty environment.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --editable clients/python --editable '.[local,dev]'
	build/lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf build .npm .contrafact out $(VENV)
