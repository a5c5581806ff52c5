# make demo: the whole path on a corpus made on the spot. make test: every test. Both make .venv if it is absent.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_STORE := data/demo
DEMO_RUN := runs/demo

.PHONY: install demo test smoke check format clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; name another one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/ingest demo --store $(DEMO_STORE)
	$(BIN)/training run --iter 2 --preset demo --store $(DEMO_STORE) --run $(DEMO_RUN)
	$(BIN)/training eval $(DEMO_RUN) --store $(DEMO_STORE)
	$(BIN)/training predict $(addprefix $(DEMO_STORE)/source/demo-0/audio/,bark_001.wav rain_001.wav siren_001.wav) \
		--model $(DEMO_RUN)
	@echo
	@echo "shards, manifest, teacher cache   $(DEMO_STORE)"
	@echo "configuration, metrics, models    $(DEMO_RUN)"
	@echo "look at the curves                $(BIN)/tensorboard --logdir $(DEMO_RUN)/tensorboard"

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

smoke: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/manifests tests/ingest/test_decode.py tests/ingest/test_any_audio.py \
		tests/featurestore/test_openstore.py tests/training/test_cli.py tests/test_exit_codes.py

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(DEMO_STORE) $(DEMO_RUN)
