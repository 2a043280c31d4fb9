package consumer

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// hand is what this worker has in hand. One ticker keeps all of it alive.
type hand struct {
	every time.Duration
	mu    sync.Mutex
	held  map[jetstream.Msg]time.Time // since when
}

func newHand(every time.Duration) *hand {
	return &hand{every: every, held: map[jetstream.Msg]time.Time{}}
}

func (h *hand) take(msg jetstream.Msg) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held[msg] = time.Now()
}

func (h *hand) leave(msg jetstream.Msg) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.held, msg)
}

func (h *hand) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.held)
}

// keepAlive tells the server that what is in hand is being worked on, until ctx ends.
func (h *hand) keepAlive(ctx context.Context) {
	ticker := time.NewTicker(h.every)
	defer ticker.Stop()
	var alive []jetstream.Msg
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		alive = alive[:0]
		h.mu.Lock()
		for msg := range h.held {
			alive = append(alive, msg)
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
