# Everything a developer types. `make` alone lists it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test test-minimum lint browser constraints wheel bench bench-files clean

help:
	@echo "make demo     train Adam and LAMB on real digits while the dashboard shows them"
	@echo "make test     check style, types and behaviour (sets itself up)"
	@echo "make test-minimum   the same tests on the oldest version of each dependency"
	@echo "make bench    measure what recording costs beside other packages; write the README's tables"
	@echo "make bench-files   measure a run's files beside other formats and readers: an hour or two, 20 GB"
	@echo "make setup    make the environment in $(VENV), with the versions of constraints.txt"
	@echo "make wheel    build the wheel, with the C loops compiled for this platform, into dist/"
	@echo "make clean    remove what was built"

# $(call environment,FOLDER,TORCH,OPTIONS): make a virtual environment in FOLDER, then install TORCH,
# then what OPTIONS name. PyTorch comes first and by version: as a dependency of another package, it
# would bring gigabytes of CUDA to a machine without a GPU.
define environment
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	@echo "installing $(2)"
	$(1)/bin/python -m pip install --quiet "$(2)"
	$(1)/bin/python -m pip install --quiet $(3)
endef
TORCH := $(if $(shell command -v nvidia-smi),torch>=2.11,torch==2.13.0)
PINNED := --constraint constraints.txt --build-constraint constraints.txt

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(call environment,$(VENV),$(TORCH),$(PINNED) --group dev --editable ".[all]")
	touch $@

# Renew the pinned versions of every tool and dependency: the newest that pyproject.toml allows.
# Run it on a machine without a GPU; PyTorch's own pins stay out of the list.
constraints:
	rm -rf build/constraints
	$(PYTHON) -m venv build/constraints
	build/constraints/bin/python -m pip install --quiet --upgrade pip
	build/constraints/bin/python -m pip install --quiet "$(TORCH)"
	build/constraints/bin/python -m pip install --quiet --group dev --editable ".[all]"
	{ echo "# The versions that \`make setup\` installs; \`make constraints\` renews them."; \
	  build/constraints/bin/python -m pip freeze --all --exclude-editable \
	  | grep -E '^[A-Za-z0-9._-]+==' | grep -vE '^(torch|triton)=='; } > constraints.txt
	rm -rf build/constraints

# The pages are tested in the system's own Chromium.
browser:
	@command -v chromium >/dev/null || { echo "installing chromium"; \
	  if [ "$$(id -u)" = 0 ]; then as=; else as=sudo; fi; \
	  $$as apt-get update -qq && $$as apt-get install -y -qq chromium >/dev/null; }

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo --no-cache

test: lint browser
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# The suite on the oldest version of each dependency that pyproject.toml declares.
MINIMUM := build/minimum
$(MINIMUM)/.ready: pyproject.toml constraints.txt
	mkdir -p build
	$(PYTHON) .ci/minimum.py > build/minimum.txt
	$(call environment,$(MINIMUM),$(TORCH),--constraint build/minimum.txt --group test --editable ".[all]")
	touch $@

test-minimum: $(MINIMUM)/.ready browser
	$(MINIMUM)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

demo: $(READY)
	$(BIN)/python sample_runs/demo.py

# A wheel with the loops compiled for this platform; without TRUSTLENS_COMPILE it has none.
wheel: $(READY)
	TRUSTLENS_COMPILE=1 $(BIN)/python -m build --wheel --no-isolation

# In an environment of its own, with the other packages; those installed last would bring another
# torch if they had their way.
BENCH := build/bench
$(BENCH)/.ready: pyproject.toml
	$(call environment,$(BENCH),$(TORCH),--group bench --editable ".[all]")
	$(BENCH)/bin/python -m pip install --quiet --no-deps \
	  backpack-for-pytorch==1.7.1 cockpit-for-pytorch==1.0.2 timm==1.0.31
	touch $@

bench: $(BENCH)/.ready
	$(BENCH)/bin/python -m benchmarks.overhead
	$(BENCH)/bin/python -m benchmarks.pages

# The runs that are measured are recorded first, and kept in build/files.
bench-files: $(READY)
	$(BIN)/python -m benchmarks.files --tenfold
	$(BIN)/python -m benchmarks.pages

clean:
	rm -rf $(VENV) build dist
