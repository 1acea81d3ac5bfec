# Each target does all of its own set-up, from a bare checkout on: it finds a Python, makes a virtual environment and
# installs what it needs. The second run finds that done and starts at once; a change of pyproject.toml or
# constraints.txt installs again.
#
#   make demo    a run of the library on real data                 ARGS="..." are handed to `trace-core demo`
#   make test    everything CI checks: lint, types, import rules, tests    ARGS="..." are handed to pytest
#   make lint    the static part of it only
#   make bench   what recording costs, beside a peer library in an environment of its own; BENCH=frugal, ... runs another
#                of benchmarks/   ARGS="..." go to the benchmark
#   make clean   remove what the targets above made
#
# PYTHON=python3.12 make ... takes that interpreter.

VENV := .venv
PEER := .venv-bench-trace
OPENAI3 := .venv-openai3
PY := $(VENV)/bin/python
ARGS ?=
BENCH ?= tracing
PIP_INSTALL := -m pip install -qq --disable-pip-version-check
PYTHONS := $(PYTHON) python3 python3.13 python3.12 python3.11
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

DEMO_EXTRAS := litellm,local
TEST_EXTRAS := dev,litellm,local,torch,optim,milp,monty,ray,dask,examples,bench

.PHONY: help demo test lint bench clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed-demo
	@$(VENV)/bin/trace-core demo $(ARGS)

# Two processes share the files out: many tests wait for child processes and servers. A file stays in one of them.
test: lint $(OPENAI3)/.installed
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

# Types and import rules are checked on the installed wheel: that is what users get, and only there do all packages lie
# under their one import root. `cd` keeps the tools from finding the source tree first.
lint: $(VENV)/.installed-test
	@echo "ruff"
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@echo "wheel"
	@$(PY) tests/wheel_venv.py build/lint
	@echo "mypy --strict"
	@cd build/lint && ../../$(PY) -m mypy --config-file ../../pyproject.toml --python-executable venv/bin/python -p trace_core
	@echo "import rules"
	@cd build/lint && venv/bin/python ../../tests/import_rules.py ../../pyproject.toml

BENCHES := $(patsubst benchmarks/%.py,%,$(wildcard benchmarks/[a-z]*.py))

bench: $(VENV)/.installed-test $(if $(filter tracing,$(BENCH)),$(PEER)/.installed)
	@if [ ! -f benchmarks/$(BENCH).py ]; then \
	  echo "There is no benchmark $(BENCH). BENCH= one of: $(BENCHES)" >&2; exit 1; \
	fi
	@$(PY) benchmarks/$(BENCH).py $(ARGS)

clean:
	rm -rf $(VENV) $(PEER) $(OPENAI3) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# ---- set-up

$(VENV)/.installed-demo: EXTRAS := $(DEMO_EXTRAS)
$(VENV)/.installed-test: EXTRAS := $(TEST_EXTRAS)
$(VENV)/.installed-%: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing trace_core[$(EXTRAS)] into $(VENV) (the first time takes a few minutes)"
	@$(PY) $(PIP_INSTALL) --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# Only packages, to be put in front of those of $(VENV) by PYTHONPATH: tests/integrations/llm/test_openai3.py.
$(OPENAI3)/.installed: $(VENV)/.installed-test tests/integrations/llm/requirements-openai3.txt
	@echo "installing openai 3 into $(OPENAI3)"
	@rm -rf $(OPENAI3)
	@$(PY) $(PIP_INSTALL) --no-deps --target $(OPENAI3) --requirement tests/integrations/llm/requirements-openai3.txt
	@touch $@

$(PEER)/.installed: $(PEER)/.made benchmarks/requirements-trace-opt.txt
	@echo "installing the peer library into $(PEER)"
	@$(PEER)/bin/python $(PIP_INSTALL) --requirement benchmarks/requirements-trace-opt.txt
	@touch $@

# An environment that is there and usable is kept. `import ensurepip` is what fails where a Linux distribution has put
# venv into a package of its own.
.PRECIOUS: %/.made
%/.made:
	@if $*/bin/python -c '$(SUITABLE)' 2>/dev/null && $*/bin/python -m pip --version >/dev/null 2>&1; then \
	  touch $@; exit 0; \
	fi; \
	for candidate in $(PYTHONS); do \
	  if $$candidate -c '$(SUITABLE)' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 was found (tried: $(strip $(PYTHONS)))." >&2; \
	  echo "Install one, e.g. 'apt install python3.11 python3.11-venv' or 'brew install python@3.13'," >&2; \
	  echo "or name one: PYTHON=/path/to/python3.12 make ..." >&2; \
	  exit 1; \
	fi; \
	if ! $$found -c 'import ensurepip, venv' 2>/dev/null; then \
	  version=$$($$found -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	  echo "$$found cannot make virtual environments: its venv package is missing." >&2; \
	  echo "Install it, e.g. 'apt install python3-venv' or 'apt install $$version', and run make again." >&2; \
	  exit 1; \
	fi; \
	echo "making $* with $$found"; \
	$$found -m venv --clear $* && touch $@
