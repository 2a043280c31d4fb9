package consumer

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// hand is what this worker has in hand, by the requests' sequences. One ticker
// keeps all of it alive.
type hand struct {
	every time.Duration
	mu    sync.Mutex
	held  map[uint64]*entry
}

func newHand(every time.Duration) *hand {
	return &hand{every: every, held: map[uint64]*entry{}}
}

// take takes a delivery in hand; false: the request is there already, and is
// settled by this, its latest delivery.
func (h *hand) take(e *entry) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if there := h.held[e.sequence]; there != nil {
		there.delivery = e.delivery
		return false
	}
	h.held[e.sequence] = e
	return true
}

func (h *hand) leave(e *entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[e.sequence] == e {
		delete(h.held, e.sequence)
	}
}

// delivery is the latest delivery of the request, nil where it was read out of
// the stream.
func (h *hand) delivery(e *entry) *nats.Msg {
	h.mu.Lock()
	defer h.mu.Unlock()
	return e.delivery
}

func (h *hand) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}

// get returns the request of that sequence, nil where it isn't in hand.
func (h *hand) get(sequence uint64) *entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[sequence]
}

// of returns what is in hand of an org.
func (h *hand) of(o *org) (entries []*entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.held {
		if e.lane.org == o {
			entries = append(entries, e)
		}
	}
	return entries
}

// storedBefore returns what is in hand and was stored before an instant, by org.
func (h *hand) storedBefore(at time.Time) map[*org][]*entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	old := map[*org][]*entry{}
	for _, e := range h.held {
		if e.stored.Before(at) {
			old[e.lane.org] = append(old[e.lane.org], e)
		}
	}
	return old
}

// leftovers are how many requests of the org are in hand of earlier tenures of it,
// and so under way.
func (h *hand) leftovers(o *org) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.held {
		if e.lane.org != o && e.lane.org.name == o.name {
			n++
		}
	}
	return n
}

// keepAlive tells the server that what is in hand is being worked on, until ctx
// ends, and calls also each time.
func (h *hand) keepAlive(ctx context.Context, also func()) {
	ticker := time.NewTicker(h.every)
	defer ticker.Stop()
	var alive []*nats.Msg
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		also()
		alive = alive[:0]
		h.mu.Lock()
		for _, e := range h.held {
			alive = append(alive, e.delivery)
		}
		h.mu.Unlock()
		for _, msg := range alive {
			// An error means that the connection is down: what is in hand is
			// handed over again, and the claim or the stored response decides.
			_ = msg.InProgress()
		}
		clear(alive)
	}
}
