package consumer

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
)

func record(name, org string, status connection.Status, places int) *connection.Connection {
	return &connection.Connection{
		Name: name, Location: "us", Environment: connection.Production, OrgID: org, Status: status, Concurrency: places,
	}
}

const (
	org1 = "org-us-production-1"
	org2 = "org-us-production-2"
)

// A connection moves between the queue of those nobody knows, its org's and its
// own; the queue that it leaves is named first.
func TestDirectoryMoves(t *testing.T) {
	t.Parallel()
	d := newDirectory(DefaultAckWait)
	for _, step := range []struct {
		status  connection.Status
		org     string
		touched []string
	}{
		{connection.Active, "1", []string{"unknown/a", org1}},
		{connection.Active, "1", []string{org1}},
		{connection.Revoked, "1", []string{org1, "parked/a"}},
		{connection.Unreadable, "1", []string{"parked/a"}},
		{connection.Active, "2", []string{"parked/a", org2}},
		{connection.Active, "1", []string{org2, org1}},
		{connection.Removed, "1", []string{org1, "unknown/a"}},
		{connection.Removed, "1", []string{"unknown/a"}},
		{connection.Revoked, "1", []string{"unknown/a", "parked/a"}},
	} {
		got := d.put(record("a", step.org, step.status, 5))
		if !slices.Equal(got, step.touched) {
			t.Errorf("%s in org %s touches %v, want %v", step.status, step.org, got, step.touched)
		}
		if q := d.queue("a"); q != step.touched[len(step.touched)-1] {
			t.Errorf("%s in org %s: its queue is %s", step.status, step.org, q)
		}
		// Exactly one queue has its subjects.
		var have []string
		for _, q := range []string{"unknown/a", "parked/a", org1, org2} {
			if slices.Contains(d.plan(q).subjects, "zoho.requests.a") {
				have = append(have, q)
			}
		}
		if len(have) != 1 || have[0] != d.queue("a") {
			t.Errorf("%s in org %s: its subjects are in %v", step.status, step.org, have)
		}
	}
	if q := d.queue("nobody"); q != "unknown/nobody" {
		t.Errorf("the queue of nobody is %s", q)
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	d := newDirectory(7 * time.Second)
	d.put(record("b", "1", connection.Active, 25))
	d.put(record("a", "1", connection.Active, 10))
	d.put(record("c", "1", connection.Revoked, 1))
	p := d.plan(org1)
	want := []string{"zoho.requests.a", "zoho.requests.a.>", "zoho.requests.b", "zoho.requests.b.>"}
	if !slices.Equal(p.subjects, want) || p.places != 10 || p.parked || p.empty() || p.name != org1 {
		t.Errorf("the org's plan is %+v", p)
	}
	c := p.config()
	if c.MaxDeliver != -1 || len(c.BackOff) != 0 || c.AckPolicy != jetstream.AckExplicitPolicy || c.MaxAckPending != 10 || c.AckWait != 7*time.Second {
		t.Errorf("the org's consumer is %+v", c)
	}
	if p := d.plan("parked/c"); !p.parked || !p.empty() || !slices.Contains(p.subjects, "zoho.requests.c") {
		t.Errorf("the parked plan is %+v", p)
	}
	if p := d.plan("unknown/x"); p.places != strangerPlaces || p.empty() {
		t.Errorf("a stranger's plan is %+v", p)
	}
	if p := d.plan("unknown/a"); !p.empty() {
		t.Errorf("a known one's plan as a stranger is %+v", p)
	}
	if p := d.plan(org2); !p.empty() {
		t.Errorf("an org without connections has the plan %+v", p)
	}
}

func TestCovers(t *testing.T) {
	t.Parallel()
	p := plan{name: org1, subjects: []string{"a", "b"}, places: 5}
	for name, row := range map[string]struct {
		config       jetstream.ConsumerConfig
		covers, same bool
	}{
		"as planned":     {jetstream.ConsumerConfig{FilterSubjects: []string{"b", "a"}, MaxAckPending: 5}, true, true},
		"another limit":  {jetstream.ConsumerConfig{FilterSubjects: []string{"a", "b"}, MaxAckPending: 6}, false, true},
		"less subjects":  {jetstream.ConsumerConfig{FilterSubject: "a", MaxAckPending: 5}, false, false},
		"other subjects": {jetstream.ConsumerConfig{FilterSubjects: []string{"a", "c"}, MaxAckPending: 5}, false, false},
	} {
		if p.covers(row.config) != row.covers || p.sameSubjects(row.config) != row.same {
			t.Errorf("%s: covers %v, same subjects %v", name, p.covers(row.config), p.sameSubjects(row.config))
		}
	}
	one := plan{subjects: []string{"a"}, places: 1}
	if !one.covers(jetstream.ConsumerConfig{FilterSubject: "a", MaxAckPending: 1}) {
		t.Error("a single subject in its own field")
	}
}

// Different queues have different consumers, whose names the server takes.
func TestDurable(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, q := range []string{
		org1, "unknown/a", "unknown-a", "unknown.a", "parked/a", "unknown/" + strings.Repeat("x", 200), "unknown/" + strings.Repeat("x", 201),
		"unknown/*", "unknown/>", "unknown/ü", "unknown/ö",
	} {
		name := durable(q)
		if unsafeName.MatchString(name) || len(name) > 80 || name == "" {
			t.Errorf("%s: consumer %q", q, name)
		}
		if other, taken := seen[name]; taken {
			t.Errorf("%s and %s share the consumer %s", q, other, name)
		}
		seen[name] = q
	}
	if durable(org1) != org1 {
		t.Errorf("a plain name becomes %s", durable(org1))
	}
}

func TestConnectionOf(t *testing.T) {
	t.Parallel()
	for subject, want := range map[string]string{
		"zoho.requests.acme": "acme", "zoho.requests.acme.low": "acme", "zoho.activity.acme": "acme",
		"zoho.responses.acme.1": "", "other": "", "": "",
	} {
		if got := connectionOf(subject); got != want {
			t.Errorf("%q is of %q, want %q", subject, got, want)
		}
	}
}
