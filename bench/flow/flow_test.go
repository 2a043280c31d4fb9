package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A report replaces its own part of its own section, and nothing else on the page.
func TestWrite(t *testing.T) {
	t.Parallel()
	page := filepath.Join(t.TempDir(), "performance.md")
	if err := os.WriteFile(page, []byte("# Performance\n\nOther's text.\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, step := range [][2]string{{"surprise", "S1"}, {"load", "L1"}, {"surprise", "S2"}} {
		if err := write(page, step[0], step[1]); err != nil {
			t.Fatal(err)
		}
	}
	data, _ := os.ReadFile(page)
	if err := os.WriteFile(page, append(data, "\n## After\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(page, "idle", "I1"); err != nil {
		t.Fatal(err)
	}
	data, _ = os.ReadFile(page)
	want := "# Performance\n\nOther's text.\n\n## Flow control\n\n" + begin + "\n" +
		mark("load") + "\n\nL1\n\n" + mark("idle") + "\n\nI1\n\n" + mark("surprise") + "\n\nS2\n\n" + end + "\n\n## After\n"
	if string(data) != want {
		t.Errorf("%s", data)
	}
}

func TestQuantiles(t *testing.T) {
	t.Parallel()
	s := spans{3, 1, 2, 4}
	if s.quantile(0) != 1 || s.quantile(0.5) != 3 || s.quantile(0.99) != 4 || spans(nil).quantile(0.5) != 0 {
		t.Error(s.quantile(0), s.quantile(0.5), s.quantile(0.99))
	}
	if least, median := quantiles([]float64{0.97, 0.5, 0.99}); least != 0.5 || median != 0.97 {
		t.Error(least, median)
	}
	if thousands(7) != "7" || thousands(1234567) != "1,234,567" {
		t.Error(thousands(1234567))
	}
}

// TestSmoke runs a small load through real processes: that it works, not how well.
func TestSmoke(t *testing.T) {
	if os.Getenv("BENCH_SMOKE") != "1" {
		t.Skip("set BENCH_SMOKE=1, or make bench-smoke: it builds the worker and starts servers")
	}
	s := settings{
		workers: 2, inFlight: 256, orgs: 5, most: 200, duration: 3 * time.Second, warmUp: time.Second,
		delayMin: 10 * time.Millisecond, delayMax: 20 * time.Millisecond, seed: 1,
	}
	r, err := measure(t.Context(), s, load)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(r.text, "| small | 1 |") || !strings.Contains(r.sentence, "calls of 5 orgs") {
		t.Errorf("%s\n%s", r.text, r.sentence)
	}
}
