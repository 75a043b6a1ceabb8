# Two commands matter: `make demo` and `make test`. Each builds what it needs in .venv, from pinned and hashed requirements.
PYTHON ?= python3.11
ARGS ?=
BIN := .venv/bin

.PHONY: demo test check install bench chaos kafka requirements clean

demo: .venv/installed models/default/manifest.json
	$(BIN)/driftstream demo $(ARGS)

test: .venv/installed models/default/manifest.json
	$(BIN)/pytest $(ARGS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: .venv/installed

# A longer run than `make test` has, from a seed that it prints: make chaos ARGS="--seed 7 --guarantee at_least_once"
chaos: .venv/installed
	$(BIN)/python tests/chaos/chaos.py $(ARGS)

# One JSON line a question on standard output; the log is the BestBuy one, or `make bench LOG=DIR`. It takes some 40 to 60 minutes.
LOG ?= ../shared/data/bestbuy
bench:
	@$(MAKE) --no-print-directory .venv/installed .venv-bench/installed models/default/manifest.json >&2
	@$(BIN)/python tests/bench/bench_engine.py
	@$(BIN)/python tests/bench/bench_job.py $(LOG)
	@$(BIN)/python tests/bench/bench_encoder.py $(LOG)
	@$(BIN)/python tests/bench/bench_gpu.py $(LOG)
	@$(BIN)/python tests/bench/bench_encoding_worker.py $(LOG)
	@$(BIN)/python tests/bench/bench_latency.py $(LOG)
	@$(BIN)/python tests/bench/bench_recovery.py
	@$(BIN)/python tests/bench/bench_scaling.py --log $(LOG)
	@$(BIN)/python tests/bench/bench_catalogue.py --items 1000 1000000 --probes 100
	@$(BIN)/python tests/bench/bench_memory.py $(LOG)

# The peers have an environment of their own: Quix Streams wants an older confluent-kafka than ours.
.venv-bench/installed: requirements/bench.txt | .venv/installed
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-bench
	$(BIN)/uv pip sync --quiet --python .venv-bench/bin/python --require-hashes requirements/bench.txt
	touch $@

kafka: .venv/installed
	$(BIN)/python tests/kafka/broker.py

models/default/manifest.json: | .venv/installed
	$(BIN)/model-export export --output models/default

.venv/installed: requirements/uv.txt requirements/dev.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip sync --quiet --require-hashes requirements/uv.txt requirements/dev.txt
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# Pin again what pyproject.toml asks for, to the newest that fits.
requirements: .venv/installed
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make requirements" requirements/uv.in -o requirements/uv.txt
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make requirements" requirements/bench.in -o requirements/bench.txt
	$(BIN)/uv pip compile --quiet --upgrade --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make requirements" --extra train --extra cuda --extra replay --extra dev pyproject.toml -o requirements/dev.txt

clean:
	rm -rf .venv .venv-bench models .kafka
