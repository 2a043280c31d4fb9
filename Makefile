# Every target says what it is for: make help lists them.

GO        ?= go
TOOLS     := $(CURDIR)/.tools
GOLANGCI  := $(TOOLS)/golangci-lint
LINT_VERSION := v2.15.0
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo 0.1.0-dev)
LDFLAGS   := -s -w -X zoho-worker/internal/app.Version=$(VERSION)

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## everything in one process, with a simulated Zoho
	$(GO) run ./cmd/worker dev

.PHONY: build
build: ## bin/worker as it runs in production: static, without the sandbox
	CGO_ENABLED=0 $(GO) build -trimpath -tags production,grpcnotrace -ldflags "$(LDFLAGS)" -o bin/worker ./cmd/worker

.PHONY: test
test: ## what the README says: all tests of the main module
	$(GO) test ./...

.PHONY: check
check: format vet lint race failpoints build ## what CI runs

.PHONY: format
format: $(GOLANGCI) ## fail where a file is not formatted
	$(GOLANGCI) fmt --diff ./...

.PHONY: fix
fix: $(GOLANGCI) ## format, and mend what the linters can
	$(GOLANGCI) fmt ./...
	$(GOLANGCI) run --fix ./...

.PHONY: vet
vet: ## go vet, with each build tag
	$(GO) vet ./...
	$(GO) vet -tags failpoint ./...
	$(GO) vet -tags production ./cmd/...

.PHONY: lint
lint: $(GOLANGCI) ## golangci-lint with .golangci.yml
	$(GOLANGCI) run ./...

.PHONY: race
race: ## all tests of the main module, with the race detector
	$(GO) test -race -timeout 20m ./...

.PHONY: compile
compile: $(GOLANGCI) build ## what make check needs compiled: the linter, the tests with the race detector, the worker
	$(GO) test -race -run '^$$' ./...

.PHONY: compile-more
compile-more: ## what the steps of .ci/run after make check need compiled
	for d in chaos deploy deploy/dockerfile browser; do (cd test/$$d && $(GO) test -mod=mod -run '^$$' ./...) || exit 1; done

.PHONY: failpoints
failpoints: ## the tests that stop a worker at each step of the path
	$(GO) test -tags failpoint ./internal/failpoint
	$(GO) test -tags failpoint -race -timeout 10m -run AtEachPoint ./test/integration

.PHONY: browser
browser: ## the console in a real browser (needs chromium and npm; REQUIRE_CHROMIUM=1 insists)
	cd test/browser && npm ci --ignore-scripts --no-fund --no-audit --silent && $(GO) test -mod=mod -count=1 -timeout 10m ./...

.PHONY: clients
clients: ## the programs of docs/clients.md, in Node (needs npm) and in Python where nats-py is there; REQUIRE_CLIENTS=python,js insists
	@dir=$$(mktemp -d) && trap "rm -rf $$dir" EXIT && \
		npm install --prefix $$dir --ignore-scripts --no-fund --no-audit --silent @nats-io/transport-node@3.4.0 @nats-io/jetstream@3.4.0 && \
		NODE_MODULES=$$dir/node_modules $(GO) test -count=1 -v -run ClientsOfTheDocs ./test

.PHONY: deploy
deploy: ## Compose file, Dockerfile, manifests, dashboard and alert rules (needs promtool, openssl; REQUIRE_PROMTOOL=1 insists)
	cd test/deploy && $(GO) test -mod=mod -count=1 -timeout 15m ./...
	cd test/deploy/dockerfile && $(GO) test -mod=mod -count=1 ./...

# Three worlds for as long as faults strike, and what building, starting, draining and the other worlds may take.
CHAOS_LENGTH  = $(or $(and $(CHAOS_MINUTES),$(shell expr $(CHAOS_MINUTES) '*' 60)),$(CHAOS_SECONDS),45)
CHAOS_TIMEOUT = $(shell expr 3 '*' $(CHAOS_LENGTH) + 3000)s

.PHONY: chaos
chaos: ## faults of every kind on real processes for CHAOS_SECONDS (45) or CHAOS_MINUTES, CHAOS_SEED replays; prints the books
	@report=$$(mktemp); cd test/chaos && CHAOS_REPORT=$$report $(GO) test -mod=mod -count=1 $(CHAOS_FLAGS) -timeout $(CHAOS_TIMEOUT) ./... ; status=$$?; \
		cat $$report; rm -f $$report; exit $$status

.PHONY: chaos-short
chaos-short: ## what CI runs of it: one seed, 12 s on one NATS server and 12 s on a cluster
	@CHAOS_SECONDS=12 CHAOS_SEED=$(CHAOS_SHORT_SEED) $(MAKE) --no-print-directory chaos CHAOS_TIMEOUT=4m CHAOS_FLAGS=-short
CHAOS_SHORT_SEED ?= 11

.PHONY: fuzz
fuzz: ## each fuzz test for FUZZTIME (default 30s)
	@for f in $$(grep -ho 'func Fuzz[A-Za-z]*' internal/envelope/*_test.go | cut -d' ' -f2); do \
		$(GO) test ./internal/envelope -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-30s} || exit 1; done

.PHONY: bench
bench: ## benchmarks of the envelope, the call, and the whole path
	$(GO) test -run '^$$' -bench . -benchmem ./internal/envelope ./internal/zoho ./internal/token ./test/integration

.PHONY: bench-peers
bench-peers: ## the worker as a process against a hand-written one, and peers on the PATH; BENCH="-repeat 5 -scenarios get,post"
	$(GO) run ./bench $(BENCH)

.PHONY: bench-growth
bench-growth: ## what a request costs with 10, 100 and 1,000 connections, and with a backlog of 10³ and 10⁵
	$(GO) run ./bench -candidates worker -scenarios turns-10,turns-100,turns-1000,backlog-1e3,backlog-1e5 $(BENCH)

.PHONY: bench-flow
bench-flow: ## flow control on real processes, judged by the simulator; BENCH="-scenario idle", "-scenario surprise", "-duration 30s", "-worker bin/worker"
	$(GO) run ./bench/flow $(BENCH)

.PHONY: bench-smoke
bench-smoke: ## a few hundred messages through the benchmark: that it works, not how fast
	BENCH_SMOKE=1 $(GO) test -count=1 -timeout 5m ./bench ./bench/flow

$(GOLANGCI):
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin $(TOOLS)
