package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/flow"
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

// A name that a caller made up does nothing to a terminal.
func TestRenderHasNoControls(t *testing.T) {
	t.Parallel()
	screen := render(&inspect.Overview{
		Unqueued: []inspect.Waiting{{Connection: "\x1b]0;gone\x07\u009b2J", Requests: 7}},
		Queues:   []inspect.Queue{{Name: "connection-a", Lanes: []inspect.Lane{{Connection: "a"}}, Connections: []string{"\x1b[2J"}}},
	})
	if strings.ContainsAny(screen, "\x1b\x07\u009b") || !strings.Contains(screen, "gone") {
		t.Errorf("the screen is %q", screen)
	}
}

// The screen says what matters, whatever is missing.
func TestRender(t *testing.T) {
	t.Parallel()
	left := int64(400)
	now := time.Now().Add(-time.Hour) // the server's clock is another than this machine's
	screen := render(&inspect.Overview{
		At: now, NATS: "nats://a:4222", Version: "2.15.2",
		Streams: []inspect.Stream{{Name: "ZOHO_REQUESTS", Messages: 3, Bytes: 2048, Age: time.Minute}, {Name: "ZOHO_DEAD", Missing: true}},
		Queues: []inspect.Queue{{
			Name: "org-eu-production-20078233816", Connections: []string{"acme", "b", "c", "d", "acme-reports"}, Owner: "zoho-worker-7d9f8c6b5-x7k2p",
			Waiting: 3012, InFlight: 2, Places: 10, Heavy: 1, HeavyPlaces: 10, Lanes: []inspect.Lane{{Connection: "acme", Lane: "bulk", Waiting: 3000}},
			Paused: 90 * time.Second, PausedUntil: time.Now().Add(90 * time.Second), Cause: "429 TOO_MANY_REQUESTS", For: flow.Credits,
			HeavyPause: &flow.Pause{Until: now.Add(30 * time.Second), Cause: "429 TOO_MANY_REQUESTS", For: flow.SubConcurrency},
			Credits:    &flow.Forecast{Remaining: &left, PerHour: 400, OutAt: time.Now().Add(time.Hour)},
		}},
		Unqueued:    []inspect.Waiting{{Connection: "gone", Requests: 7, State: inspect.Authorization}},
		Workers:     []inspect.Worker{{ID: "W1", Version: "1.2.3", About: consumer.About{Host: "h", PID: 9, InFlight: 2, MaxInFlight: 512, NotReady: "can't store zoho.responses.>"}}},
		Connections: map[string]int{"active": 5, "revoked": 1},
		Troubled:    []consumer.Troubled{{Name: "gone", Status: "revoked", Reason: "invalid_code"}},
	})
	for _, want := range []string{
		"2.0 KiB", "1m0s", "is not there: start a worker", "paused for another 1m30s, until ", "(429 TOO_MANY_REQUESTS), limit credits", "heavy calls paused for another 30s, until ", "3012     3000  2/10    1/10", "400 left", "acme b c d +1", "…9f8c6b5-x7k2p",
		"400 credits an hour, it is out of credits at", "(none: revoked)", "W1", "W1 is not ready: can't store zoho.responses.>", "5 active, 1 revoked", "gone is revoked: invalid_code",
	} {
		if !strings.Contains(screen, want) {
			t.Errorf("%q is not on the screen:\n%s", want, screen)
		}
	}
	for _, line := range strings.Split(screen, "\n") {
		if n := len([]rune(line)); n > 100 && !strings.Contains(line, ": ") {
			t.Errorf("a line of the tables has %d columns: %s", n, line)
		}
	}
	if empty := render(&inspect.Overview{}); !strings.Contains(empty, "no worker answers: none runs, or") || !strings.Contains(empty, "no org queue has work") {
		t.Errorf("an empty screen is\n%s", empty)
	}
}

// A screen has room for some queues; how many there are besides, it says.
func TestRenderOfManyQueues(t *testing.T) {
	t.Parallel()
	o := &inspect.Overview{Queues: make([]inspect.Queue, mostQueues+5), Unqueued: make([]inspect.Waiting, mostQueues+7)}
	screen := render(o)
	for _, want := range []string{"and 5 more", "and 7 more without a queue"} {
		if !strings.Contains(screen, want) {
			t.Errorf("%q is not on the screen:\n%s", want, screen)
		}
	}
	if n := strings.Count(screen, "nobody"); n != mostQueues {
		t.Errorf("%d queues are shown", n)
	}
}

// Progress that is longer than the terminal is wide would fill it, a line a second.
func TestInPlace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		width int
		want  string
	}{{0, "waiting 3s: päused"}, {80, "waiting 3s: päused"}, {19, "waiting 3s: päused"}, {18, "waiting 3s: päus…"}, {1, "waiting 3s: päused"}} {
		if got := inPlace("waiting 3s: päused", c.width); got != c.want {
			t.Errorf("%d wide: %q, want %q", c.width, got, c.want)
		}
	}
}
