# Everything that is run on this repository. CI runs `check` and `test`; nothing else is needed.

SHELL := /bin/bash -o pipefail
CARGO ?= cargo
PREFIX ?= /usr/local

.PHONY: check fix test compat bench bench-full sim fuzz install protoc

# Formatting, lints, dependencies. Never writes.
check: protoc
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	tools/check-dependencies

fix: protoc
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

# All tests; the last line counts them.
test: protoc
	tools/run-tests --workspace

# The same checks against us and against official etcd, then etcd's own suite, then Kubernetes' API
# server on a group whose members are killed. Needs Go, unshare and ip; builds etcd and that server
# once.
compat: protoc
	$(CARGO) build --release --locked --workspace
	OXETCD_BIN_DIR=$(CURDIR)/target/release tools/run-tests -p oxetcd-compat-tests
	target/release/dns
	target/release/partition
	target/release/compat

# Simulates groups of members, SEEDS seeds of it; then kills a server again and again under load,
# CYCLES times. Nothing acknowledged may be lost.
SEEDS ?= 2000
CYCLES ?= 1000
sim: protoc
	SEEDS=$(SEEDS) CYCLES=$(CYCLES) tools/run-sim

install:
	$(CARGO) build --release --locked
	install -D -t $(DESTDIR)$(PREFIX)/bin target/release/oxetcd target/release/oxetcdutl

# A compiler of .proto files for dependencies that insist on running one.
protoc:
	$(CARGO) build --quiet --locked -p oxetcd-tools --bin oxetcd-protoc
	@install -D -C target/debug/oxetcd-protoc target/protoc/oxetcd-protoc

# Side by side with official etcd: the headline rows (about ten minutes), or all. The machine must be
# idle otherwise. Ends with one line per claim, and fails when a floor is missed.
bench: protoc
	$(CARGO) build --release --locked --workspace
	target/release/oxetcd-bench --report tools/bench/reports/headline

bench-full: protoc
	$(CARGO) build --release --locked --workspace
	target/release/oxetcd-bench --full --report tools/bench/reports/full

# Every property of the library with TIMES times as many random cases as in `make test`.
TIMES ?= 50
fuzz: protoc
	PROPTEST_CASES=$$((256 * $(TIMES))) OXETCD_CASES_TIMES=$(TIMES) \
		tools/run-tests --release -p oxetcd --lib
