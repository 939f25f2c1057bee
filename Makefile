# All commands for working on this project; `make` lists them.
# Everything that is installed or built stays in the checkout: target/ (Rust), .venv/ (Python), stubs in clients/.

VENV := .venv
BENCH_VENV := target/bench/venv
SPARK_VENV := target/spark-venv
PYTHON := $(VENV)/bin/python
PROTOS := $(wildcard proto/*.proto)
RUST_VERSION_MIN := $(shell sed -n 's/^rust-version = "\([0-9.]*\)".*/\1/p' Cargo.toml)
# Spark is tested where there is a Java, and where no test may step aside.
SPARK_IF_JAVA := $(if $(shell command -v java)$(filter 1,$(TALLY_REQUIRE_ALL)),spark-venv)
# One stub represents all of them, because protoc generates them in one run.
STUBS := clients/table_pb2.py

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-cluster check check-cluster stubs venv spark-venv torture mutants docker bench bench-plots bench-cluster fuzz fuzz-build clean need-cargo need-cxx need-python need-docker

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The debug build, because `make test` needs it too.
demo: need-cargo ## starts a server, uploads inputs/*.csv, asks for sums and jobs, waits for Enter, stops it
	cargo build --locked
	@scripts/demo.sh target/debug/tally

# The files are loaded once: a later start finds them in the table.
serve: need-cargo ## starts a server with inputs/*.csv in target/serve, and its console at http://localhost:5000/
	cargo build --locked
	@echo 'console: http://localhost:5000/ (Ctrl-C stops the server)'
	target/debug/tally serve --data target/serve $(addprefix --load ,$(sort $(wildcard inputs/*.csv)))

# The last cargo command builds target/debug/tally again: the model check leaves a binary there whose lock and workers run
# under the checker only, and the Python tests need the normal one. The Python tests create folders of some 100 MB, for
# which /tmp may be too small: they are in target/, and the next run removes those of the last one.
test: need-cargo venv stubs $(SPARK_IF_JAVA) ## all tests: Rust, the model check, JavaScript (if there is Node.js 20), Python (with docker, chromium and java, if they are there)
	@if node -e 'process.exit(parseInt(process.versions.node) < 20)' 2>/dev/null; then node --test tests/web/*.test.js; \
	  else echo 'tests/web is left out: there is no Node.js 20 or newer'; fi
	cargo test --locked
	cargo test --locked --features model --test model
	cargo build --locked
	$(PYTHON) -m pytest --basetemp=target/pytest -o tmp_path_retention_policy=failed tests/python
	$(PYTHON) tests/torture --short

# A workspace of its own, with some 300 crates more than the server has: the first build takes 10 minutes on two cores. In the
# tests, executors die and answer wrongly on purpose, for which the feature `faults` is.
CLUSTER := --locked --manifest-path cluster/Cargo.toml --target-dir target/cluster --features faults

test-cluster: need-cargo venv stubs ## tests of tally-cluster (docs/cluster.md), which `make test` leaves out
	cargo test $(CLUSTER)
	cargo build $(CLUSTER)
	$(PYTHON) -m pytest --basetemp=target/pytest-cluster -o tmp_path_retention_policy=failed tests/cluster

# ARGS chooses rows, time and seed: ARGS="--minutes 60", ARGS="--only kill --seed 7", ARGS=--list. Some rows need root, ptrace
# or a C compiler; they say so if they lack it. ARGS="--markdown docs/guarantees.md" writes the results into the page.
torture: need-cargo venv stubs ## attacks and faults against the release build; try ARGS="--minutes 15"
	cargo build --locked --release --bin tally
	TALLY_BINARY=target/release/tally $(PYTHON) tests/torture $(ARGS)

# ARGS names some of them. A copy of the tree is built in target/mutants.
mutants: need-cargo venv stubs ## bugs on purpose, each of which a named test must find; takes about a quarter of an hour
	$(PYTHON) tests/torture/mutants.py $(ARGS)

check: need-cargo ## format, lints and documentation, without a warning
	cargo fmt --check
	cargo fmt --check --manifest-path bench/Cargo.toml
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path cluster/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --features model -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps

check-cluster: need-cargo ## lints of tally-cluster, which `make check` leaves out, without a warning
	cargo clippy $(CLUSTER) --all-targets -- -D warnings

venv: $(VENV)/requirements.txt ## the Python environment of the tests, in .venv

# The list is copied last, so a failed installation is tried again, and a complete one is kept until the list changes.
$(VENV)/requirements.txt: tests/python/requirements.txt | need-python
	rm -rf $(VENV)
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --requirement $<
	cp $< $@

# Its own environment, because it is large (about 500 MB).
spark-venv: $(SPARK_VENV)/requirements.txt ## the Python environment of the test with Spark, in target/

$(SPARK_VENV)/requirements.txt: tests/python/spark-requirements.txt | need-python
	rm -rf $(SPARK_VENV)
	python3 -m venv $(SPARK_VENV)
	$(SPARK_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	cp $< $@

stubs: $(STUBS) ## the Python stubs of proto/, in clients/

$(STUBS): $(PROTOS) $(VENV)/requirements.txt
	$(PYTHON) -m grpc_tools.protoc -Iproto --python_out=clients --grpc_python_out=clients $(PROTOS)

docker: need-docker ## the image, as p3
	docker build . -t p3

# The server, and the programs that measure it, which are a crate of their own.
define BENCH_BUILD
cargo build --locked --release --bin tally
cargo build --locked --release --manifest-path bench/Cargo.toml --target-dir target
endef

# ARGS chooses rows, sizes and output, for example ARGS="--row csvsum" or ARGS=--quick.
bench: need-cargo $(BENCH_VENV)/requirements.txt ## compares times with other systems and the machine's limits; try ARGS=--quick
	$(BENCH_BUILD)
	$(BENCH_VENV)/bin/python bench/run.py $(ARGS)

bench-plots: need-cargo $(BENCH_VENV)/requirements.txt ## times against rows, parts, columns and clients, in bench/plots
	$(BENCH_BUILD)
	$(BENCH_VENV)/bin/python bench/plot.py $(ARGS)

# The release build of cluster/ has some 300 crates more than the server, with optimization.
bench-cluster: need-cargo $(BENCH_VENV)/requirements.txt ## sums over a cluster beside those without one; see docs/cluster.md
	$(BENCH_BUILD)
	cargo build --locked --release --manifest-path cluster/Cargo.toml --target-dir target/cluster
	$(BENCH_VENV)/bin/python bench/cluster.py $(ARGS)

# Coverage, which guides the fuzzer. With --target the flags do not apply to build scripts, which have no fuzzer.
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
	-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing
FUZZ_TARGET = $(shell rustc -vV | sed -n 's/^host: //p')

FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/src/bin/*.rs)))

fuzz: fuzz-build ## compares fast code with simple code, reads records and requests; a minute each; ARGS="-max_total_time=3600" for longer
	for target in $(FUZZ_TARGETS); do mkdir -p target/fuzz/$$target fuzz/corpus/$$target && \
	  target/fuzz/$(FUZZ_TARGET)/release/$$target -max_total_time=60 -max_len=8192 -artifact_prefix=target/fuzz/ $(ARGS) \
	  target/fuzz/$$target fuzz/corpus/$$target inputs || exit 1; done

# The torture row `fuzz` runs what is built.
fuzz-build: need-cargo need-cxx ## builds the fuzz targets, in target/fuzz
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --release --manifest-path fuzz/Cargo.toml --target-dir target/fuzz --target $(FUZZ_TARGET)

# Separate from the environment of the tests, because the peers are large.
$(BENCH_VENV)/requirements.txt: bench/requirements.txt | need-python
	rm -rf $(BENCH_VENV)
	python3 -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	cp $< $@

clean: ## removes everything that was built and installed here
	rm -rf target $(VENV) clients/*_pb2.py clients/*_pb2_grpc.py

# Report a missing tool at once, in one line.
need-cargo:
	@command -v cargo >/dev/null || { echo 'cargo is missing: install Rust from https://rustup.rs' >&2; exit 1; }
	@cargo --version | awk -v min=$(RUST_VERSION_MIN) \
		'{ split($$2, is, "."); split(min, want, "."); exit is[1] * 1000 + is[2] < want[1] * 1000 + want[2] }' \
		|| { echo "Rust $(RUST_VERSION_MIN) or newer is needed, this is $$(cargo --version): try rustup update" >&2; exit 1; }
	@command -v cc >/dev/null || { echo 'cc, which links Rust programs, is missing: install gcc' >&2; exit 1; }

need-cxx:
	@command -v c++ >/dev/null || { echo 'c++, which the fuzzer is compiled with, is missing: install g++' >&2; exit 1; }

need-python:
	@command -v python3 >/dev/null || { echo 'python3 is missing: install Python 3.11 or newer' >&2; exit 1; }
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "the tests' packages need Python 3.11 or newer, this is $$(python3 --version)" >&2; exit 1; }
	@python3 -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo 'python3 cannot make virtual environments: install python3-venv' >&2; exit 1; }

need-docker:
	@docker version >/dev/null 2>&1 || { echo 'no docker engine answers: install docker and start it' >&2; exit 1; }
