# The front door. `make` lists what there is to do.
#
# Settings, from the environment or the command line:
#   DATA_DIR           where `make run` keeps its memories      (run/data)
#   LISTEN             the address `make run` answers on        (127.0.0.1:7700)
#   MODEL_DIR          where the embedding model lies           (~/.cache/memcube/models/minilm-l6-v2)
#   LANGUAGE_MODEL     `local`, or `none` for no answers        (local)
#   LANGUAGE_MODEL_DIR where the language model lies            (~/.cache/memcube/models/smollm2-135m-instruct)
#   PROFILE            cargo profile of `make run`              (release)
#   SIM_SECONDS        how long each swarm of `make sim` searches       (120)
#   FEATURES           more features to build and test, as in `make test FEATURES=full`   (none)
#   FDB_CLUSTER_FILE   the cluster of `make conformance-fdb`    (none: the test double)
#   CARGO_TARGET_DIR   where cargo builds                       (target)

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

DATA_DIR ?= run/data
LISTEN ?= 127.0.0.1:7700
PROFILE ?= release
FEATURES ?=
LANGUAGE_MODEL ?= local
SIM_SECONDS ?= 120
ifdef MEMCUBE_MODEL_DIR
MODEL_DIR ?= $(MEMCUBE_MODEL_DIR)
else ifdef XDG_CACHE_HOME
MODEL_DIR ?= $(XDG_CACHE_HOME)/memcube/models/minilm-l6-v2
else
MODEL_DIR ?= $(HOME)/.cache/memcube/models/minilm-l6-v2
endif
# The scripts and the tests find the model by this name.
override MEMCUBE_MODEL_DIR := $(MODEL_DIR)
export MEMCUBE_MODEL_DIR
ifdef LANGUAGE_MODEL_DIR
export MEMCUBE_LANGUAGE_MODEL_DIR := $(LANGUAGE_MODEL_DIR)
endif

# A rustup that was installed a minute ago is not on the PATH of this terminal yet.
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

CARGO = cargo
LOCKED = --locked
WITH_FEATURES = $(if $(FEATURES),--features "$(FEATURES)")
MEMCUBE = $(CARGO) run $(LOCKED) --profile $(PROFILE) $(WITH_FEATURES) --bin memcube --
# What `setup` makes sure of depends on what will be built.
export MEMCUBE_FEATURES = $(FEATURES)

# The simulated FoundationDB is part of what is simulated.
sim: MEMCUBE_FEATURES = $(FEATURES) fdb
SIM = $(CARGO) run $(LOCKED) --quiet --profile sim -p memcube-simulations --features fdb \
	--bin memcube-sim --

.PHONY: help run test openai-client model-server sim conformance-fdb lint bench model language-model setup doc openapi clean

help: ## Lists these commands
	@echo 'usage: make <command>'
	@echo
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  %-15s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Settings (DATA_DIR, LISTEN, MODEL_DIR, PROFILE, ...) are at the top of the Makefile.'

# `make run LANGUAGE_MODEL=none` does without the language model.
run: export MEMCUBE_WANTS = $(if $(filter none,$(LANGUAGE_MODEL)),,language-model)
run: setup model $(if $(filter none,$(LANGUAGE_MODEL)),,language-model) ## Sets up what is missing, builds, and starts a server on LISTEN
	@echo 'run: building memcube ($(PROFILE)); the first build takes minutes, later ones seconds'
	@echo 'run: then serving on `$(LISTEN)`, memories in `$(DATA_DIR)`; Ctrl-C stops it'
	@mkdir -p '$(DATA_DIR)'
	@exec $(MEMCUBE) serve --data-dir '$(DATA_DIR)' --listen '$(LISTEN)' --model-dir '$(MODEL_DIR)' \
		--language-model '$(LANGUAGE_MODEL)'

test: export MEMCUBE_WANTS = language-model
test: setup model language-model ## Runs every test of every crate, and sums them up in the last line
	@.ci/cargo-test.sh --workspace $(LOCKED) $(WITH_FEATURES)

# With the models, on a server of its own.
openai-client: export MEMCUBE_WANTS = language-model python
openai-client: setup model language-model ## Tests the server through OpenAI's own Python client
	@FEATURES='$(FEATURES)' tests/openai_client/run.sh

# llama.cpp's own server comes from a Python package.
model-server: setup language-model ## Tests chats with a model behind llama.cpp's server
	@FEATURES='$(FEATURES)' tests/model_server/run.sh

# A seed may be given as MEMCUBE_SIM_SEED, for example the number of the commit; without one the
# swarm always searches the same seeds.
sim: setup ## Simulates: same seed same trace, old failures, planted bugs, then a swarm
	$(SIM) meta --seeds 20
	$(SIM) meta assistant --seeds 1 --runs 100
	$(SIM) regressions simulations/regressions.txt
	$(SIM) planted
	$(CARGO) run $(LOCKED) --profile sim -p memcube-simulations --features fdb \
		--example agent_under_faults -- 20
	$(SIM) swarm --seconds $(SIM_SECONDS) --all-points
	$(SIM) meta --store foundationdb --seeds 5
	$(SIM) swarm --store foundationdb --seconds $(SIM_SECONDS)

# With FDB_CLUSTER_FILE it uses that cluster, through the client library that is installed, and
# removes again what it wrote.
conformance-fdb: MEMCUBE_FEATURES = fdb
conformance-fdb: setup ## Tests the FoundationDB backend, on a real cluster if one is named
	FDB_CLUSTER_FILE='$(FDB_CLUSTER_FILE)' $(CARGO) test $(LOCKED) --no-default-features --features fdb \
		--test it foundationdb

# Two feature sets, no more: a third would compile the heavy crates a third time. The two lower
# crates are checked by themselves, because in the workspace others switch features on for them.
lint: setup ## Checks formatting, clippy, the lower crates alone, and the documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(LOCKED) --workspace --all-targets $(WITH_FEATURES) -- -D warnings
	$(CARGO) clippy $(LOCKED) --workspace --all-targets --no-default-features -- -D warnings
	$(CARGO) check $(LOCKED) -p memcube-schemas
	$(CARGO) check $(LOCKED) -p memcube-actors
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc $(LOCKED) --no-deps --workspace $(WITH_FEATURES)
	@if cargo deny --version >/dev/null 2>&1; then \
		echo 'cargo deny check bans licenses sources'; \
		cargo deny check bans licenses sources; \
	else echo 'lint: `cargo deny` is not installed; `make test` checks the crate edges without it'; fi
	@if command -v shellcheck >/dev/null 2>&1; then \
		echo 'shellcheck'; shellcheck .ci/run .ci/*.sh deploy/*.sh benches/*.sh tests/*/*.sh; \
	else echo 'lint: `shellcheck` is not installed; the scripts were not checked'; fi

bench: MEMCUBE_FEATURES = $(FEATURES) lance
bench: export MEMCUBE_WANTS = language-model python
bench: setup model language-model ## Runs the benchmarks in benches/
	@benches/run.sh

model: ## Fetches the embedding model into MODEL_DIR, once
	@deploy/fetch-model.sh

language-model: ## Fetches a small language model, once; see deploy/fetch-model.sh
	@deploy/fetch-model.sh smollm2-135m-instruct

setup: ## Checks for what building needs; installs it where it may
	@deploy/setup.sh

doc: setup ## Builds the documentation of all crates
	$(CARGO) doc $(LOCKED) --no-deps --workspace

openapi: setup ## Writes docs/openapi.json from the code
	@mkdir -p docs
	$(CARGO) run $(LOCKED) --bin memcube -- openapi > docs/openapi.json.new
	@mv docs/openapi.json.new docs/openapi.json

clean: ## Removes what was built; memories and the model stay
	$(CARGO) clean
