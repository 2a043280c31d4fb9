package consumer

import (
	"encoding/json"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/micro"

	"zoho-worker/internal/connection"
)

// About is what a worker says of itself in the stats of the service zoho.
type About struct {
	Host        string         `json:"host"`
	PID         int            `json:"pid"`
	InFlight    int            `json:"in_flight"`
	MaxInFlight int            `json:"max_in_flight"`
	Queues      int            `json:"queues"`
	Connections map[string]int `json:"connections"` // by status
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
// request that it has in hand.
type InHand struct {
	Host  string    `json:"host"`
	PID   int       `json:"pid"`
	Since time.Time `json:"since"`
}

// maxTroubled bounds the connections that a worker names in its stats.
const maxTroubled = 50

var host, _ = os.Hostname()

func (c *Consumer) about(*micro.Endpoint) any {
	a := About{
		Host: host, PID: os.Getpid(), InFlight: c.hand.len(), MaxInFlight: c.MaxInFlight, Connections: map[string]int{},
	}
	c.mu.Lock()
	a.Queues = len(c.active)
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
// that hasn't says nothing.
func (c *Consumer) tellHand(ask micro.Request) {
	sequence, err := strconv.ParseUint(string(ask.Data()), 10, 64)
	if err != nil {
		return
	}
	since, ok := c.hand.since(sequence)
	if !ok {
		return
	}
	if data, err := json.Marshal(InHand{Host: host, PID: os.Getpid(), Since: since}); err == nil {
		_ = ask.Respond(data)
	}
}

// since is from when on the request of that sequence is in hand.
func (h *hand) since(sequence uint64) (time.Time, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for msg, since := range h.held {
		if meta, err := msg.Metadata(); err == nil && meta.Sequence.Stream == sequence {
			return since, true
		}
	}
	return time.Time{}, false
}
