# Each target prepares .venv itself; all it needs is Python 3.11, make and git.
PYTHON ?= python3.11
VENV = .venv
BIN = $(VENV)/bin
ARGS =

.PHONY: demo test lint clean

$(VENV)/ready: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[embedded,test]'
	touch $@

demo: $(VENV)/ready
	@$(BIN)/buildbot-ec2ud demo $(ARGS)

test: $(VENV)/ready
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info _trial_temp*
