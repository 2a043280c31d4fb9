package consumer

import (
	"context"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// hand is what this worker has in hand. One ticker keeps all of it alive.
type hand struct {
	every   time.Duration
	most    int64        // bytes of requests in hand, where more wait in the stream
	bytes   atomic.Int64 // of those that are
	mu      sync.Mutex
	entries map[origin]*entry
}

// origin tells a request from all others that were ever in the stream: where a
// stream is made anew, or a server loses its last writes, sequences begin again.
type origin struct {
	sequence uint64
	at       int64 // when it was stored there, in nanoseconds by the server's clock
}

// handMost is how many bytes of requests a worker has in hand, and a quarter of the
// runtime's memory limit where that is less. More than that, a few of each lane
// aside, wait in the stream: in hand they would only be closer to their start.
const handMost = 256 << 20

func newHand(every time.Duration) *hand {
	return &hand{every: every, most: min(handMost, debug.SetMemoryLimit(-1)/4), entries: map[origin]*entry{}}
}

// room is how many bytes more a lane may have in hand that has some already, 0 for
// none. While there is any, all lanes that are pulled from may ask for a part of it; when
// there is none, each still has its share, if others don't hold twice as much as there
// is room for, from when there were fewer lanes. What a lane asks for at a time grows
// with what it has, because all that is on its way is in nobody's hand yet.
func (h *hand) room(has int64) int64 {
	lanes, left := max(1, openLanes.Load()), h.most-h.bytes.Load()
	if left <= -h.most {
		return 0
	}
	return min(max(0, h.most/lanes-has, left/lanes), 2*has+firstAsk)
}

// firstAsk is as much as a lane that has nothing in hand asks for: what one request may
// be by the server's default, which is its share at least.
const firstAsk = 1 << 20

// take takes a delivery in hand; false: the request is there already, and is
// settled by this, its latest delivery.
func (h *hand) take(e *entry) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if there := h.entries[e.origin()]; there != nil {
		there.delivery = e.delivery
		return false
	}
	h.entries[e.origin()] = e
	h.bytes.Add(e.size)
	return true
}

func (h *hand) leave(e *entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.entries[e.origin()] == e {
		delete(h.entries, e.origin())
		h.bytes.Add(-e.size)
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
	return len(h.entries)
}

// has reports whether the request is in hand.
func (h *hand) has(o origin) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.entries[o] != nil
}

// get returns the request of that sequence, the last stored one; nil where none is
// in hand.
func (h *hand) get(sequence uint64) (last *entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for o, e := range h.entries {
		if o.sequence == sequence && (last == nil || o.at > last.origin().at) {
			last = e
		}
	}
	return last
}

// of returns what is in hand of an org.
func (h *hand) of(o *org) (entries []*entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.entries {
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
	for _, e := range h.entries {
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
	for _, e := range h.entries {
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
		for _, e := range h.entries {
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
