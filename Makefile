# Each target prepares .venv itself; all it needs is Python 3.11, make and git.
PYTHON ?= python3.11
VENV = .venv
BIN = $(VENV)/bin
ARGS =

.PHONY: demo test growth soak coverage bench lint clean

$(VENV)/ready: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[embedded,test]'
	touch $@

demo: $(VENV)/ready
	@$(BIN)/buildbot-ec2ud demo $(ARGS)

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# Two masters on PostgreSQL, with Crossbar between them: two minutes, one of them for installing Crossbar.
growth: $(VENV)/ready
	EC2UD_GROWTH=1 $(BIN)/python -m pytest tests/integration/test_growth.py

# Random sequences of what can happen to a farm, thousands of steps: some hours.
soak: $(VENV)/ready
	SOAK_STEPS=10000 $(BIN)/python -m pytest tests/integration/test_random_life.py

# The files in which every branch has to be run by the unit tests: what they do is seldom seen to happen.
FULLY_TESTED = */ec2/errors.py,*/ec2/query.py,*/ec2/send.py,*/fleet/pacing.py,*/fleet/terminations.py

coverage: $(VENV)/ready
	$(BIN)/coverage run --branch --include='$(FULLY_TESTED)' -m pytest --quiet tests/unit/test_errors.py \
		tests/unit/test_query*.py tests/unit/test_pacing.py tests/unit/test_terminations.py
	$(BIN)/coverage report --show-missing --fail-under=100

# A few minutes; `make bench ARGS=--full` is all of docs/performance.md, and takes more than two hours.
bench: $(VENV)/bench
	@$(BIN)/python contrib/benchmark/calls.py
	@$(BIN)/python contrib/benchmark/compare.py $(ARGS)

$(VENV)/bench: $(VENV)/ready
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	touch $@

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp*
