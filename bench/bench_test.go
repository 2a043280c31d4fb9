package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary be the upstream's process, as the harness is its own.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "-upstream" {
		if err := upstreamMain(os.Args[2]); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// A few hundred messages through every kind of measurement: that each of them
// works and every answer is right, not how fast anything is.
func TestSmoke(t *testing.T) {
	if os.Getenv("BENCH_SMOKE") == "" {
		t.Skip("set BENCH_SMOKE=1, or make bench-smoke: it builds the worker and starts servers")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	r, err := run(ctx, settings{repeat: 1, scale: 0.01, scenarios: "get,get-tls,post,flight,steady,turns-10,backlog-1e3"})
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	r.print(&table)
	t.Log("\n" + table.String())
	for _, at := range []row{
		{"get", "/s"},
		{"get-tls", "µs"},
		{"post", "/s"},
		{"flight", "peak MiB"},
		{"flight", "KiB per request in flight"},
		{"steady", "added p99.9 µs"},
		{"turns-10", "µs"},
		{"backlog-1e3", "/s"},
		{"get", "start ms"},
	} {
		for _, candidate := range []string{"worker", "baseline", bare} {
			if candidate == bare && (at.scenario == "get-tls" || at.scenario == "post") {
				continue
			}
			if _, ok := r.median(candidate, at); !ok {
				t.Errorf("nothing was measured: %s of %s in %s", at.figure, candidate, at.scenario)
			}
		}
	}
}
