package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/inspect"
)

func TestFit(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		width, height int
		want          []string
	}{
		{0, 0, []string{"äbc", "d", "e"}}, // a terminal that doesn't know its size
		{2, 0, []string{"äb", "d", "e"}},
		{80, 3, []string{"äbc", "d"}},
		{80, 1, []string{"äbc", "d", "e"}},
		{80, 24, []string{"äbc", "d", "e"}},
	} {
		if got := fit([]string{"äbc", "d", "e"}, row.width, row.height); !slices.Equal(got, row.want) {
			t.Errorf("%dx%d: %q, want %q", row.width, row.height, got, row.want)
		}
	}
}

// The screen says what matters, whatever is missing.
func TestRender(t *testing.T) {
	t.Parallel()
	screen := render(&inspect.Overview{
		NATS: "nats://a:4222", Version: "2.15.2",
		Streams:     []inspect.Stream{{Name: "ZOHO_REQUESTS", Messages: 3, Bytes: 2048, Age: time.Minute}, {Name: "ZOHO_DEAD", Missing: true}},
		Queues:      []inspect.Queue{{Name: "org-eu-1", Connections: []string{"a", "b", "c", "d", "e"}, Waiting: 3, InHand: 2, Places: 10, Paused: 90 * time.Second, Cause: "429 TOO_MANY_REQUESTS"}},
		Unqueued:    []inspect.Waiting{{Connection: "gone", Requests: 7}},
		Workers:     []inspect.Worker{{ID: "W1", Version: "1.2.3", About: consumer.About{Host: "h", PID: 9, InFlight: 2, MaxInFlight: 512}}},
		Connections: map[string]int{"active": 5, "revoked": 1},
		Troubled:    []consumer.Troubled{{Name: "gone", Status: "revoked", Reason: "invalid_code"}},
	})
	for _, want := range []string{
		"2.0 KiB", "1m0s", "is not there: start a worker", "1m30s (429 TOO_MANY_REQUESTS)", "a b c d and 1 more", "gone", "W1", "5 active, 1 revoked", "gone is revoked: invalid_code",
	} {
		if !strings.Contains(screen, want) {
			t.Errorf("%q is not on the screen:\n%s", want, screen)
		}
	}
	if empty := render(&inspect.Overview{}); !strings.Contains(empty, "no worker answers") || !strings.Contains(empty, "no org queue has work") {
		t.Errorf("an empty screen is\n%s", empty)
	}
}
