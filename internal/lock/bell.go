package lock

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// bell wakes waiters when a lock is released: one subscription for all of a
// Locker's waiters, there for as long as there are any.
type bell struct {
	client  redis.UniversalClient
	channel string
	timeout time.Duration

	mu      sync.Mutex
	waiters map[string]map[chan struct{}]struct{} // by the lock's name
	count   int
	line    *line
}

// line is one subscription.
type line struct {
	pubsub *redis.PubSub
	ready  chan struct{} // closed when the server confirmed, or that failed
	done   chan struct{} // closed when the last message was taken
}

// listen returns a channel that gets a value when the named lock is released,
// and how to stop listening. It returns once the server has confirmed the
// subscription, or could not within the timeout.
func (b *bell) listen(ctx context.Context, name string) (rung <-chan struct{}, leave func()) {
	ear := make(chan struct{}, 1)
	b.mu.Lock()
	if b.waiters == nil {
		b.waiters = map[string]map[chan struct{}]struct{}{}
	}
	if b.waiters[name] == nil {
		b.waiters[name] = map[chan struct{}]struct{}{}
	}
	b.waiters[name][ear] = struct{}{}
	b.count++
	if b.line == nil {
		b.line = &line{ready: make(chan struct{}), done: make(chan struct{})}
		// Without a channel Subscribe does no I/O; the channel comes in run.
		b.line.pubsub = b.client.Subscribe(context.WithoutCancel(ctx))
		go b.run(b.line)
	}
	ready := b.line.ready
	b.mu.Unlock()
	select {
	case <-ready:
	case <-ctx.Done():
	}
	return ear, func() { b.leave(name, ear) }
}

func (b *bell) leave(name string, ear chan struct{}) {
	b.mu.Lock()
	delete(b.waiters[name], ear)
	if len(b.waiters[name]) == 0 {
		delete(b.waiters, name)
	}
	b.count--
	var idle *line
	if b.count == 0 {
		idle, b.line = b.line, nil
	}
	b.mu.Unlock()
	if idle != nil {
		_ = idle.pubsub.Close()
		<-idle.done
	}
}

// run subscribes and passes releases on until the line is closed. Where the
// connection breaks all waiters are woken, because a release may have been
// missed and Redis may be gone; the next Receive subscribes again.
func (b *bell) run(l *line) {
	defer close(l.done)
	ctx, cancel := context.WithTimeout(context.Background(), b.timeout)
	err := l.pubsub.Subscribe(ctx, b.channel)
	if err == nil {
		_, err = l.pubsub.ReceiveTimeout(ctx, b.timeout)
	}
	cancel()
	close(l.ready)
	for {
		if errors.Is(err, redis.ErrClosed) {
			return
		}
		if err != nil {
			b.ringAll()
			time.Sleep(b.timeout / 3)
		}
		var msg any
		msg, err = l.pubsub.Receive(context.Background())
		if released, ok := msg.(*redis.Message); ok {
			b.ring(released.Payload)
		}
	}
}

func (b *bell) ringAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ears := range b.waiters {
		ring(ears)
	}
}

func (b *bell) ring(name string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ring(b.waiters[name])
}

func ring(ears map[chan struct{}]struct{}) {
	for ear := range ears {
		select {
		case ear <- struct{}{}:
		default:
		}
	}
}
