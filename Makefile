# Every target installs the programs it needs where they are missing, and says so.
CARGO ?= cargo
# Tests and the demo make network namespaces, which takes root; building does not.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo -E env "PATH=$(PATH)")

.PHONY: all build demo demo-clean soak scale test test-pure lint bench bench-quick golden fuzz tools
all: build

tools:
	@.ci/tools

build:
	$(CARGO) build --release --workspace --locked

# Three nodes with pods and Services in network namespaces that end with it: real traffic of every kind, and how soon changes arrive.
# KEEP=1 leaves it up and says how to look inside.
demo: tools build
	$(AS_ROOT) $(or $(CARGO_TARGET_DIR),target)/release/sepal-lab demo $(if $(KEEP),--keep)

# Ends one that was left up; its namespaces, and all that is in them, end with it.
demo-clean:
	-$(AS_ROOT) pkill -f 'sepal-lab demo'

# Ten minutes of churn, faults and restarts over such nodes; everything has to be as it was in the end, and no connection unexplained.
# MINUTES=60 takes longer.
soak: tools build
	$(AS_ROOT) $(or $(CARGO_TARGET_DIR),target)/release/sepal-lab soak --minutes $(or $(MINUTES),10)

# The rest of a large cluster simulated around one real node: what its start and changes cost.
# NODES=5000 SERVICES=10000 ENDPOINTS=3 say how large.
scale: tools build
	$(AS_ROOT) $(or $(CARGO_TARGET_DIR),target)/release/sepal-lab scale --nodes $(or $(NODES),5000) --services $(or $(SERVICES),10000) --endpoints $(or $(ENDPOINTS),3)

# Tests that need neither root nor a network: under a minute.
test-pure:
	$(CARGO) test --locked --test pure

# All tests. tests/pure and tests/api need no root; tests/kernel and tests/program make network namespaces. The status page is tested with a
# browser.
test:
	@.ci/tools chromium
	$(CARGO) test --workspace --locked --no-run
	$(AS_ROOT) $(CARGO) test --workspace --locked

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --offline check bans licenses sources; \
	else echo "cargo-deny is not installed: licences, bans and sources go unchecked (cargo install cargo-deny)"; fi

bench: tools
	$(CARGO) bench --workspace --locked

# Compares a few ratios with the recorded ones: under three minutes. QUICK=record writes them.
bench-quick: tools
	$(CARGO) bench --locked --bench service_proxy --no-run
	$(AS_ROOT) env SEPAL_BENCH_QUICK=$(CURDIR)/benches/quick-ratios.txt $(if $(filter record,$(QUICK)),SEPAL_BENCH_RECORD=1) $(CARGO) bench --locked --bench service_proxy

# Rewrites golden/ from testdata/. Read the difference like code.
golden:
	UPDATE_GOLDEN=1 $(CARGO) test --locked --test pure golden

# Feeds arbitrary text to the manifest reader and to the CNI plugin's, a minute each; needs cargo-fuzz and a nightly toolchain.
fuzz:
	$(CARGO) +nightly fuzz run manifests -- -max_total_time=60
	$(CARGO) +nightly fuzz run cni -- -max_total_time=60
