# The commands of this project, for users, developers and CI alike; each sets up .venv first.

python := .venv/bin/python

# The tests and the demo use real ROS 2 wherever it can be had: sourced, or as wheels for x86_64.
test test-all: export UNSCENE_REQUIRE_ROS ?= $(if $(ROS_DISTRO)$(filter x86_64,$(shell uname -m)),1)
demo: export UNSCENE_REQUIRE_ROS = 1
# What requirements.txt installs is tested, not skipped.
test test-all: export UNSCENE_REQUIRE_RAY ?= 1

help: ## lists the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

setup: ## sets up .venv (minutes the first time, then under a second)
	@./bootstrap.sh

demo: setup ## bundled recording -> live ROS 2 nodes -> output/demo/report.html
	$(python) -m unscene_ros.nodes.demo test/data/office_kitchen -o output/demo

test: lint browser ## lints, then tests
	$(python) -m pytest

test-all: lint browser ## the same with the slow tests
	$(python) -m pytest -m "slow or not slow"

lint: setup ## checks style and types
	$(python) -m ruff check
	$(python) -m ruff format --check
	$(python) -m mypy

# Elsewhere it is up to you: the chromium of Ubuntu is a snap, which cannot read the tests' files.
browser: ## installs Chromium for the tests of the report, on Debian as root
	@if ! command -v chromedriver >/dev/null && grep -qs '^ID=debian' /etc/os-release && \
	  [ "$$(id -u)" = 0 ]; then \
	  echo "browser: installing chromium"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && \
	  apt-get install -qq -y --no-install-recommends chromium-driver fonts-dejavu-core >/dev/null || \
	  echo "browser: apt-get could not install it, so the tests in a browser are skipped"; \
	fi

format: setup ## formats the code and repairs what ruff can
	$(python) -m ruff check --fix
	$(python) -m ruff format

bench: setup ## the benchmark table, also output/bench.json; make bench only=fusion,cut
	PYTHONPATH=test $(python) -m benchmarks $(if $(only),--only $(only))

clean: ## removes everything the commands above made, .venv too
	rm -rf .venv output build install log *.egg-info .hypothesis .*_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: help setup demo test test-all lint browser format bench clean
