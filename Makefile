# Two commands do all the set-up:  make demo   and   make test
# `make help` lists the rest. Everything generated goes under _build/, the environment under .venv/.

PYTHON ?= python3
BIN := .venv/bin
HERE := $(dir $(abspath $(lastword $(MAKEFILE_LIST))))
CLASS := _build/demo-class
SETS := $(notdir $(wildcard tests/sample_class/ps*))

ifneq ($(abspath $(CURDIR)),$(abspath $(HERE)))
$(error make was called from $(CURDIR), but the course is in $(HERE): cd there first, or use make -C $(HERE))
endif

.PHONY: help demo test book release mutants links lint clean

help:
	@echo "make demo     environment, exercises, book, and a sample class graded end to end"
	@echo "make test     environment and every test"
	@echo "make book     the HTML book, warnings are errors"
	@echo "make release  exercises, student edition and the students' zip"
	@echo "make mutants  every small change of right answers that the checks have to notice (minutes)"
	@echo "make links    every external link of the book is asked for: the only thing here that needs the web"
	@echo "make lint     formatter and linter"
	@echo "make clean    delete what is generated under _build/ (not the environment)"

demo: book
	@$(BIN)/python -m tests.sample_class $(CLASS)
	@$(BIN)/course grade $(SETS) --class $(CLASS) --timeout 10
	@echo
	@echo "The book:       $(CURDIR)/_build/html/index.html   (or: $(BIN)/course serve)"
	@echo "For students:   $(CURDIR)/_build/release/batchnorm-course-student.zip"
	@echo "Their feedback: $(CURDIR)/$(CLASS)/feedback"
	@echo "Next: read the book, solve exercises/ps1-algorithm in Jupyter ($(BIN)/jupyter lab exercises),"
	@echo "      or grade your own class: $(BIN)/course grade ps1-algorithm --class DIR"

# Two workers; tests/conftest.py gives each of them one thread. What is asked of every device is then asked of one that
# only plays one, in a run of its own: it does not go with forks.
test: book
	@$(BIN)/python -m pytest -n 2 --dist loadfile -q
	@$(BIN)/python -m pytest -n 2 --dist loadfile -q --device standin $$(grep -rl "import DEVICES" --include="test_*.py" tests)

# The book offers the students' zip: where there is none yet, building it releases first.
book: .venv/ready
	@$(BIN)/course build

release: .venv/ready
	@$(BIN)/course release

mutants: .venv/ready
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants

# Those inside the book are checked by its build and by the tests. What was not reached is listed at the end.
links: book
	@$(BIN)/jupyter-book build . --builder linkcheck

lint: .venv/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf _build

# The environment is made again when a pinned version changes.
.venv/ready: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "expected Python 3.11 or newer, got: $$($(PYTHON) --version 2>&1). Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; \
	  exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "$(PYTHON) could not make an environment: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	@echo "Installing the packages of requirements.txt into .venv (some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt && \
	 $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . || { \
	  echo "The packages could not be installed; pip's own message is above."; \
	  echo "Is there a network, and is a package index reachable? Then run the same command again: it goes on where it stopped."; \
	  exit 1; }
	@touch $@
