package consumer

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/zoho"
)

// What goes on waiting is told more and more seldom, and never given up.
func TestTelling(t *testing.T) {
	t.Parallel()
	begun := time.Now()
	var kept telling
	var told []int
	for second := 0; second < 3600; second += 5 {
		var due bool
		if kept, due = kept.next(begun.Add(time.Duration(second) * time.Second)); due {
			told = append(told, second)
		}
	}
	want := []int{0, 30, 90, 210, 450, 930, 1530, 2130, 2730, 3330}
	if !slices.Equal(told, want) {
		t.Errorf("told at %v, want %v", told, want)
	}
}

// That requests go on waiting for a person is no news. That their connection was
// authorized in between is.
func TestTellingOfARevokedConnection(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	c := &Consumer{
		Options:   Options{Clock: &register.Clock{}, Logger: slog.New(slog.NewTextHandler(&log, nil))},
		directory: newDirectory(0), hand: newHand(time.Second), waiting: map[string]int{"gone": 1},
	}
	revoked := &connection.Connection{Name: "gone", Location: "us", OrgID: "1", Status: connection.Revoked}
	c.directory.put(revoked)
	c.orgs = map[string]*org{revoked.Queue(): nil}
	look := func(lines int) {
		t.Helper()
		c.tellWaits()
		if n := strings.Count(log.String(), "requests wait"); n != lines {
			t.Fatalf("%d lines, want %d:\n%s", n, lines, log.String())
		}
	}
	look(1)
	look(1)
	active := *revoked
	active.Status = connection.Active
	c.directory.put(&active)
	look(1)
	c.directory.put(revoked)
	look(2)
}

// A pause by hand is told in the words that its cause has.
func TestHeldByHand(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for cause, want := range map[string]string{
		"by hand: lunch": "the org is paused (by hand: lunch)",
		"by hand":        "the org is paused (by hand)",
		"":               "the org is paused",
	} {
		o := &org{flow: flow.New(flow.Limits{Places: 5}, flow.State{Hand: &flow.Pause{Until: now.Add(time.Hour), Cause: cause}})}
		if got := o.limitInWords(&entry{}, now); got != want {
			t.Errorf("cause %q: %q, want %q", cause, got, want)
		}
	}
}

// Since when a request is in hand, and until when it waits, is told by the server's
// clock: who asks compares it with that, and this machine's may be another.
func TestInHandByTheServersClock(t *testing.T) {
	t.Parallel()
	o, l := orgOf(flow.Limits{Places: 5}, flow.State{}, laneKey{"demo", ""})
	now := time.Now()
	server := now.Add(time.Hour)
	o.Clock = &register.Clock{}
	o.Clock.Observe(server, now)
	e := waiting(l, 1, flow.Ask{Connection: "demo"}, server.Add(time.Hour))
	e.since = now
	o.rest(e, &relay.Wait{Reason: relay.WaitToken, For: time.Minute, Why: "no token: throttled"})
	defer e.timer.Stop()
	if h := e.inHand(); !h.Since.Equal(server) || h.Until.Before(server.Add(time.Minute)) || h.Calls != 0 || h.Why != "no token: throttled" {
		t.Errorf("in hand %+v, want since %s", h, server)
	}
}

// Who asks for a request in hand is told what Zoho said to it.
func TestInHandTellsOfCalls(t *testing.T) {
	t.Parallel()
	o, l := orgOf(flow.Limits{Places: 5}, flow.State{}, laneKey{"demo", ""})
	o.Clock = &register.Clock{}
	e := waiting(l, 1, flow.Ask{Connection: "demo"}, time.Now().Add(time.Hour))
	for range triesTold {
		e.Attempted(&zoho.Answer{Status: 502, CreditsRemaining: -1}, time.Now(), 0)
	}
	e.Attempted(&zoho.Answer{Status: 503, Code: "SERVICE_UNAVAILABLE", CreditsRemaining: -1}, time.Now(), 0)
	if h := e.inHand(); h.Calls != triesTold+1 || h.Last != "sent to Zoho, which answered 503 SERVICE_UNAVAILABLE" {
		t.Errorf("%d calls, the last: %s", h.Calls, h.Last)
	}
}
