package consumer

import (
	"cmp"
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/micro"

	"zoho-worker/internal/connection"
)

// About is what a worker says of itself in the stats of the service zoho.
type About struct {
	Host        string         `json:"host"`
	PID         int            `json:"pid"`
	InFlight    int            `json:"in_flight"`
	Held        int            `json:"held"` // in hand, not begun
	MaxInFlight int            `json:"max_in_flight"`
	Queues      int            `json:"queues"`
	NotReady    string         `json:"not_ready,omitempty"` // why
	Connections map[string]int `json:"connections"`         // by status
	// Troubled are connections that are not active, with their status; the
	// first of them by name.
	Troubled []Troubled `json:"troubled,omitempty"`
}

// Troubled is a connection that is not active.
type Troubled struct {
	Name   string    `json:"name"`
	Status string    `json:"status"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
}

// InHand is a worker's answer at zoho.hand.<connection> to the sequence of a
// request that it has in hand. Its times are by the server's clock.
type InHand struct {
	Host  string    `json:"host"`
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
	// Running says that it is under way; else it waits: for what its relay said
	// last, until Until, or for what holds its org back.
	Running bool `json:"running"`
	// Calls is how often Zoho was called for it, and Last what became of the last call.
	Calls int    `json:"calls,omitempty"`
	Last  string `json:"last,omitempty"`
	// Unstored is why JetStream did not store its answer when it was last asked to.
	Unstored string    `json:"unstored,omitempty"`
	Waits    string    `json:"waits,omitempty"`
	Why      string    `json:"why,omitempty"` // in words, where its relay had more to say
	Until    time.Time `json:"until,omitzero"`
	// Before is how many requests of its lane are before it.
	Before int   `json:"before"`
	Org    Sight `json:"org"`
	// Fault is why this worker can't use the connection, and has none of its
	// requests in hand; else "".
	Fault string `json:"fault,omitempty"`
}

// maxTroubled bounds the connections that a worker names in its stats.
const maxTroubled = 50

var host, _ = os.Hostname()

func (c *Consumer) about(*micro.Endpoint) any {
	a := About{
		Host: host, PID: os.Getpid(), MaxInFlight: c.MaxInFlight, Connections: map[string]int{},
	}
	if c.NotReady != nil {
		a.NotReady = c.NotReady()
	}
	a.InFlight, _ = c.gate.state()
	a.Held = max(0, c.hand.len()-a.InFlight)
	c.mu.Lock()
	a.Queues = len(c.orgs)
	c.mu.Unlock()
	for _, known := range c.Connections.All() {
		t := Troubled{Name: known.Name, Status: string(known.Status), Reason: known.StatusReason, Since: known.RevokedAt}
		if known.Err() != nil {
			t.Status, t.Reason = string(connection.Unreadable), known.Err().Error()
		}
		a.Connections[t.Status]++
		if t.Status != string(connection.Active) && len(a.Troubled) < maxTroubled {
			a.Troubled = append(a.Troubled, t)
		}
	}
	return a
}

// tellHand answers who asks whether this worker has a request in hand; a worker
// that hasn't says nothing, if it is not that it can't read the connection.
func (c *Consumer) tellHand(ask micro.Request) {
	sequence, err := strconv.ParseUint(string(ask.Data()), 10, 64)
	if err != nil {
		return
	}
	var h InHand
	if e := c.hand.get(sequence); e != nil {
		h = e.inHand()
	} else if known, ok := c.Connections.Get(strings.TrimPrefix(ask.Subject(), "zoho.hand.")); ok && known.Err() != nil {
		h = InHand{Host: host, PID: os.Getpid(), Fault: known.Err().Error()}
	} else {
		return
	}
	if data, err := json.Marshal(h); err == nil {
		_ = ask.Respond(data)
	}
}

// inHand says what the request waits for.
func (e *entry) inHand() InHand {
	o := e.lane.org
	h := InHand{Host: host, PID: os.Getpid(), Since: o.Clock.At(e.since), Org: o.sight()}
	o.mu.Lock()
	defer o.mu.Unlock()
	h.Running = e.running
	if n := len(e.tries); n > 0 {
		h.Calls, h.Last = e.untold+n, e.tries[n-1].what()
	}
	if unstored := e.unstored.Load(); unstored != nil {
		h.Unstored = *unstored
	}
	if !e.running {
		h.Waits, h.Until = e.waitsFor(o.Clock.Now())
		if e.timer != nil {
			h.Why = e.why
		}
		for _, line := range e.lane.lines() {
			if i := slices.Index(*line, e); i >= 0 {
				h.Before = i
			}
		}
	}
	return h
}

// tellOrgs answers who asks with what this worker knows of the orgs that it
// serves: of one, or of all, those with work first, as many as fit.
func (c *Consumer) tellOrgs(ask micro.Request) {
	wanted := string(ask.Data())
	sights := []Sight{}
	for _, o := range c.all() {
		if wanted == "" || wanted == o.name {
			sights = append(sights, o.sight())
		}
	}
	if wanted != "" && len(sights) == 0 {
		return
	}
	slices.SortFunc(sights, func(a, b Sight) int {
		return cmp.Or(cmp.Compare(b.Held+b.Running, a.Held+a.Running), strings.Compare(a.Queue, b.Queue))
	})
	if data, err := json.Marshal(sights[:min(len(sights), maxSights)]); err == nil {
		_ = ask.Respond(data)
	}
}

// maxSights bounds the orgs that a worker tells of at once.
const maxSights = 200
