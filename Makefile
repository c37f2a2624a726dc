# Everything runs in .venv, which is created on first use with pip as configured on this machine.
# `make help` lists the targets; PYTHON=python3.12 chooses the interpreter for .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ONE_THREAD := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
DEMO := runs/demo

.PHONY: help demo test test-long check clean

help:
	@echo "make demo       train a tiny model on the sample corpus and fill a few masks (a few minutes)"
	@echo "make check      linter, formatter, import contracts, type checker"
	@echo "make test       make check, then the fast tests"
	@echo "make test-long  make check, then every test that needs no GPU"
	@echo "make clean      delete .venv, builds and caches"

demo: .venv/installed
	@echo "Pretraining a tiny model on 31 languages with parallel.tp=2 and parallel.pp=2."
	@$(BIN)/mlm train data.corpus=sample model=tiny parallel.tp=2 parallel.pp=2 data.seq_len=128 \
		tracker=none run.name=demo run.fresh=true
	@echo
	@echo "Its predictions for <mask>, the likeliest first:"
	@$(BIN)/mlm fill $(DEMO) \
		"Весной снег тает, по улицам бегут ручьи, и дети пускают <mask> воде кораблики." \
		"春天来了，河边的柳树发芽了，孩子们在田里跑来跑去<mask>老人坐在门口晒太阳。" \
		"春になると、川のそばの桜<mask>咲き、人々は外で食べます。" \
		"In the evening the family sits in the kitchen<mask> and the grandmother tells a story." \
		top=3
	@echo "Four processes trained one model: its layers are split into two pipeline stages, and the"
	@echo "matrices of each layer into two halves. From 200 kB of text it has learnt which letters and"
	@echo "punctuation each language uses and how frequent they are, but no words yet. Its files:"
	@echo "  $(DEMO)/config.yaml       every setting of the run"
	@echo "  $(DEMO)/metrics.jsonl     loss, tokens per second and more, by step"
	@echo "  $(DEMO)/checkpoints/      weights, from which a run resumes in any layout"
	@echo "  $(DEMO)/logs/             the output of each process"
	@echo "  runs/prepared/              the tokenizer and the token shards"
	@echo "Next: $(BIN)/mlm export $(DEMO) exported  writes a folder for transformers."

test: check
	@$(ONE_THREAD) $(BIN)/pytest -q -n 2 -m "not slow and not gpu"

test-long: check
	@$(ONE_THREAD) $(BIN)/pytest -q -n 2 -m "not gpu"

check: .venv/installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than 3.11, which this project needs; give a newer one with" \
			"PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module; install it (on Debian and Ubuntu: apt install" \
			"python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv (minutes, the first time)"
	@$(PIP) --editable .
	@touch $@

.venv/installed-test: pyproject.toml | .venv/bin/python
	@echo "Installing into .venv, with what the tests need (minutes, the first time)"
	@$(PIP) --editable '.[test]'
	@touch $@ .venv/installed

clean:
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
