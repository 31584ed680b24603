# Each target installs missing programs that it needs, and prints their names.
CARGO ?= cargo
# Tests and the demo make network namespaces and need root. Building does not.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$(PATH)")

.PHONY: all build demo demo-clean soak scale test test-pure lint bench bench-quick golden fuzz tools
all: build

tools:
	@.ci/tools

build:
	$(CARGO) build --release --workspace --locked

# Starts three nodes with pods and Services in network namespaces, sends real traffic, and prints how long changes take. The namespaces are
# removed at the end. KEEP=1 keeps them and prints how to look inside.
demo: tools build
	$(AS_ROOT) $(or $(CARGO_TARGET_DIR),target)/release/sepal-lab demo $(if $(KEEP),--keep)

# Stops a demo that was kept with KEEP=1, and removes its namespaces.
demo-clean:
	-$(AS_ROOT) pkill -f 'sepal-lab demo'

# Runs ten minutes of changes, faults and restarts on such nodes. At the end the rules must be as desired, and every failed connection must
# have a known cause. MINUTES=60 runs longer.
soak: tools build
	$(AS_ROOT) $(or $(CARGO_TARGET_DIR),target)/release/sepal-lab soak --minutes $(or $(MINUTES),10)

# Simulates a large cluster around one real node, and measures its start and its changes.
# NODES=5000 SERVICES=10000 ENDPOINTS=3 set the size.
scale: tools build
	$(AS_ROOT) $(or $(CARGO_TARGET_DIR),target)/release/sepal-lab scale --nodes $(or $(NODES),5000) --services $(or $(SERVICES),10000) --endpoints $(or $(ENDPOINTS),3)

# Runs the tests that need no root and no network: under a minute.
test-pure:
	$(CARGO) test --locked --test pure

# Runs all tests. tests/pure and tests/api need no root; tests/kernel and tests/program make network namespaces. A browser tests the status
# page.
test:
	@.ci/tools chromium
	$(CARGO) test --workspace --locked --no-run
	$(AS_ROOT) $(CARGO) test --workspace --locked

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --offline check bans licenses sources; \
	else echo "cargo-deny is not installed: licences, bans and sources are not checked (cargo install cargo-deny)"; fi

bench: tools
	$(CARGO) bench --workspace --locked

# Compares a few ratios with the recorded ones: under three minutes. QUICK=record writes them.
bench-quick: tools
	$(CARGO) bench --locked --bench service_proxy --no-run
	$(AS_ROOT) env SEPAL_BENCH_QUICK=$(CURDIR)/benches/quick-ratios.txt $(if $(filter record,$(QUICK)),SEPAL_BENCH_RECORD=1) $(CARGO) bench --locked --bench service_proxy

# Writes golden/ from testdata/. Review the difference like code.
golden:
	UPDATE_GOLDEN=1 $(CARGO) test --locked --test pure golden

# Fuzzes the parsers of manifests and of CNI configurations, a minute each. Needs cargo-fuzz and a nightly toolchain.
fuzz:
	$(CARGO) +nightly fuzz run manifests -- -max_total_time=60
	$(CARGO) +nightly fuzz run cni -- -max_total_time=60
