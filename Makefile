# Two commands on a machine with Python 3.10+, make and a C++ compiler: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := dist/demo-q0f32-cpu
PROMPT ?= In the beginning
# For phones as well where there is a linker for them: Android's NDK or lld.
COMMA := ,
DEMO_TARGETS := cpu$(if $(ANDROID_NDK)$(ANDROID_NDK_HOME)$(shell command -v ld.lld),$(COMMA)android)
NO_PHONES := Nothing was built for phones: no linker for Android was found; install lld (apt-get install lld) or set \
  ANDROID_NDK to the folder of Android's NDK, then repeat make demo.

.PHONY: setup demo test lint clean

setup: $(VENV)/.core

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	touch $@

demo: $(VENV)/.core
	$(BIN)/python build.py --target $(DEMO_TARGETS)
	$(BIN)/python -m runtime_py generate $(DEMO) --prompt "$(PROMPT)" --max-tokens 64 --temperature 0.7 --top-p 0.9 --seed 1
	$(BIN)/python -m runtime_py inspect $(DEMO) --split --text-file blockffn_mlc/demo/heldout.txt
	$(if $(findstring android,$(DEMO_TARGETS)),,@echo "$(NO_PHONES)" >&2)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.test
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) dist *.egg-info
