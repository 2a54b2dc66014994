.DEFAULT_GOAL := help
.PHONY: help install install-tests install-chromium demo demo-production trigger latency bench-client bench-observe bench-execute bench-latency bench-automation bench-fleet soak screenshot check lint types dg format test unit contract live quick storages real-airflows dagster-dev

# Set ports and passwords as in `make demo WAREHOUSE_PORT=9081`; .env has their names.
UV := $(or $(shell command -v uv),$(CURDIR)/.uv/bin/uv)
RUN := $(UV) run --frozen
# Without bytecode, every process that starts compiles all that it imports.
export PYTHONDONTWRITEBYTECODE :=
SYNC := $(UV) sync --frozen --quiet
LATENCY_RUNS ?= 7
# How much `make soak` does. Raise them for a longer one: make soak CHAOS_ROUNDS=20.
HISTORIES ?= 500
BURST_RUNS ?= 500
BURST_ROUNDS ?= 3
CHAOS_ROUNDS ?= 8
CHAOS_BURST ?= 25
SOAK_MINUTES ?= 60
# S is the demo's, XL has 200 Airflows. M2, M3, L2 and XL4 are a part of M, L and XL.
FLEET_SIZES ?= S,M,M2,M3,L,L2,XL,XL4
# Of the tests of observation and execution, those in which two processes write at the same time.
# `make storages` runs the others.
ON_POSTGRES := $(addprefix tests/contract/,observation/test_ownership.py execution/test_taking_over.py)
WITH_HISTORIES := $(addprefix tests/contract/,observation/test_observation_histories.py test_automation_histories.py \
	test_all_histories.py dependencies/test_event_histories.py dependencies/test_partitions.py observation/test_rows.py \
	airflow/test_unreadable_rows.py test_run_worker.py) $(addprefix tests/unit/test_,any_dag.py automation.py partitions.py run_tags.py)
# The worker that is through takes tests of the other one.
PARALLEL := -n 2 --dist worksteal
AIRFLOWS_ONLY := "-m 'real_airflows and not dagster_dev and not soak' tests/contract/airflow tests/live"
WITH_DAGSTER := "-m 'dagster_dev and not soak' tests/live"
# Keep the output of each target together, if this make can. What they need is installed.
AT_ONCE := --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync) INSTALLED=yes

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

demo: install ## two Airflows and Dagster, until Ctrl-C
	@$(RUN) python airflow_instances/supervise.py python airflow_instances/start.py --dagster dev

demo-production: install ## the same, with Dagster as a deployment: PostgreSQL, two code servers
	@$(RUN) python airflow_instances/supervise.py python airflow_instances/start.py --dagster production

trigger: install ## run a DAG of the demo: load_customers, or DAG=load_orders; FAIL=1 lets it fail
	@$(RUN) python airflow_instances/trigger.py $(DAG) $(if $(filter-out 0 false no,$(FAIL)),--fail)

latency: install ## seconds from upstream end to downstream start in the running demo
	@$(RUN) python -m tests.bench.latency --runs $(LATENCY_RUNS)

bench-client: install ## our client and dagster-airlift's: a stub and a real Airflow 2.11, 10 minutes
	@$(RUN) python -m tests.bench.client

bench-observe: install ## our observation and dagster-airlift's: a real Airflow 2.11, 20 minutes
	@$(RUN) python -m tests.bench.observe

bench-execute: install ## waiting for 50 DAGs, ours and dagster-airlift's tutorial, 10 minutes
	@$(RUN) python -m tests.bench.execute

bench-latency: install ## the time of a dependency, ours and dagster-airlift's tutorial, 25 minutes
	@$(RUN) python -m tests.bench.federating

bench-fleet: install ## fleets of up to 200 Airflows (stubs), ours and dagster-airlift's, 2 hours
	@$(RUN) python -m tests.bench.fleet --sizes $(FLEET_SIZES)

bench-automation: install ## a tick of an automation sensor, our condition and eager(), 3 minutes
	@$(RUN) python -m tests.bench.automation

# `make -k soak` does not stop at a part that fails. Each part can be run alone, as make soak-hour.
SOAK_PARTS := $(addprefix soak-,histories dagster restarts kills hour production others)
.PHONY: $(SOAK_PARTS)

soak: storages $(SOAK_PARTS) bench-fleet ## the long tests: storages, histories, bursts, kills, an hour, sign-ins, benchmarks
	@echo
	@echo "The soak has passed: all storages; $(HISTORIES) histories; $(BURST_ROUNDS) bursts of $(BURST_RUNS) runs and $(CHAOS_ROUNDS) rounds of kills,"
	@echo "cancels and triggers with Dagster; Airflow restarts; $(SOAK_MINUTES) minutes of a deployment; sign-ins to 7 setups of Airflow;"
	@echo "4 benchmarks."

$(SOAK_PARTS): install-tests

soak-histories:
	@HISTORIES=$(HISTORIES) $(RUN) pytest -q $(WITH_HISTORIES)

soak-dagster:
	@BURST_RUNS=$(BURST_RUNS) BURST_ROUNDS=$(BURST_ROUNDS) CHAOS_ROUNDS=$(CHAOS_ROUNDS) CHAOS_BURST=$(CHAOS_BURST) \
		$(RUN) pytest -q -s -m dagster_dev tests/live

soak-restarts:
	@CHAOS_ROUNDS=$(CHAOS_ROUNDS) $(RUN) pytest -q -s -m "" tests/live/test_airflow_restarts.py

soak-kills:
	@CHAOS_ROUNDS=$(CHAOS_ROUNDS) CHAOS_AWAY_S=60 $(RUN) pytest -q -s -m soak tests/live/test_production.py

soak-hour:
	@SOAK_MINUTES=$(SOAK_MINUTES) $(RUN) pytest -q -s -m soak tests/live/test_hour.py

soak-production:
	@$(RUN) pytest -q --deployment production -m dagster_dev tests/live

soak-others:
	@$(RUN) pytest -q -s -m soak $(addprefix --ignore tests/live/,test_airflow_restarts.py test_production.py test_hour.py)

screenshot: install ## the README's picture, of the running demo
	@$(RUN) python -m docs.screenshot

check: install ## everything that needs no running Airflow, and no tests
	@$(MAKE) $(AT_ONCE) lint types dg

lint: install ## ruff: rules and layout
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .

types: install ## basedpyright
	@$(RUN) basedpyright

# Folder by folder, because dg 1.13 checks only the last file of each component type.
dg: install ## Dagster's own checks of the declarations
	@set -e; for folder in federation_defs/defs/*/; do $(RUN) dg check yaml $$folder; done
	@$(RUN) dg check defs

format: install ## let ruff fix what it can
	@$(RUN) ruff check --fix .
	@$(RUN) ruff format .

# The parts wait for different things, so they run at the same time.
test: install ## all tests but those of `soak`: unit, contract, live
	@$(MAKE) $(AT_ONCE) quick real-airflows

unit: install ## the tests without sockets
	@$(RUN) pytest tests/unit

contract: install-tests ## the tests over fake Airflows, and those of the client over real ones
	@$(RUN) pytest tests/contract

live: install-tests ## the tests over real Airflows, with and without a real dagster dev
	@$(RUN) pytest tests/live

# Only with the time that the tests with real Airflows, which mostly wait, leave over.
quick: install ## the tests that need no real Airflow
	@nice $(RUN) pytest -q $(PARALLEL) --durations 15 --storage cloud -m "not real_airflows and not soak" tests/unit tests/contract
	@nice $(RUN) pytest -q --storage postgres -m "not real_airflows and not soak" $(ON_POSTGRES)

storages: install ## observation, dependencies and execution on plain SQLite and on PostgreSQL, whole
	@set -e; for storage in sqlite postgres; do $(RUN) pytest -q $(PARALLEL) --storage $$storage \
		-m "not real_airflows and not soak" tests/contract/observation tests/contract/execution tests/contract/dependencies; done

real-airflows: install ## the tests that need real Airflows, with and without a real dagster dev
	@$(RUN) python -m tests.with_airflows $(AIRFLOWS_ONLY) $(WITH_DAGSTER)

dagster-dev: install ## the tests that need real Airflows and a real dagster dev
	@$(RUN) python -m tests.with_airflows $(WITH_DAGSTER)

install: $(UV) .env ## the project's environment, and one per Airflow of the demo
ifneq ($(origin INSTALLED),command line)
	@$(SYNC)
	@$(SYNC) --project airflow_instances/warehouse
	@$(SYNC) --project airflow_instances/metrics
endif

install-tests: install ## also an Airflow 3 with the auth manager of Airflow 2
	@UV_PROJECT_ENVIRONMENT=.venv-fab $(SYNC) --group fab --project airflow_instances/metrics

install-chromium: ## Debian's Chromium, for the tests of Dagster's UI and the screenshot; as root
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
		{ apt-get update -qq && apt-get install --yes -qq --no-install-recommends chromium; }

.env:
	@install -m 600 .env.example .env

$(CURDIR)/.uv/bin/uv:
	@echo "uv is not installed; putting it in .uv"
	@python3 -m venv .uv
	@.uv/bin/pip install --quiet uv
