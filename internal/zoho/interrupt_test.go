package zoho

import (
	"context"
	"errors"
	"net/http"
	"testing"
)

// The end of a context ends all calls that have it, and no others: whoever of them
// was the first, and whatever came between.
func TestInterrupts(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}, 16), make(chan struct{})
	c := newClient(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	gone := errors.New("gone")
	first, end := context.WithCancelCause(context.Background())
	second, endSecond := context.WithCancel(context.Background())
	defer endSecond()
	type key struct{}
	start := func(ctx context.Context) <-chan *Answer {
		answer := make(chan *Answer, 1)
		go func() { answer <- c.Do(ctx, insert()) }()
		<-arrived
		return answer
	}
	ending := []<-chan *Answer{start(first), start(first), start(context.WithValue(first, key{}, 1))}
	staying := []<-chan *Answer{start(second), start(context.Background())}
	end(gone)
	for n, answer := range ending {
		if a := <-answer; !errors.Is(a.Err, gone) || a.Unsent {
			t.Errorf("call %d of the context that ended: %+v", n, a)
		}
	}
	if a := c.Do(first, insert()); !errors.Is(a.Err, gone) || !a.Unsent {
		t.Errorf("a call after the end: %+v", a)
	}
	// The ones that stay don't keep the next context from being watched, nor the one
	// after it.
	for range 2 {
		third, endThird := context.WithCancelCause(context.Background())
		answer := start(third)
		endThird(gone)
		if a := <-answer; !errors.Is(a.Err, gone) {
			t.Errorf("a call of another context: %+v", a)
		}
	}
	close(release)
	for n, answer := range staying {
		if a := <-answer; a.Status != 200 { // it ended with another's context
			t.Errorf("call %d that stayed: %+v", n, a)
		}
	}
	if len(c.interrupts.running) != 0 {
		t.Errorf("%d connections are still watched", len(c.interrupts.running))
	}
}
