package consumer

import (
	"context"
	"sync/atomic"
)

// runners are goroutines that carry requests out. One that has nothing more to do
// waits for the next request, because its stack has grown to what a request needs:
// a new one would grow it again, at a twentieth of a request's price.
type runners struct {
	next    chan *entry
	waiting atomic.Int32
	done    <-chan struct{} // closed: none waits any more
}

// runnersKept is how many wait at most. Their stacks take up to 16 KiB each.
const runnersKept = 64

func newRunners(ctx context.Context) *runners {
	return &runners{next: make(chan *entry), done: ctx.Done()}
}

// run has an entry carried out that was started, and what can be started then.
func (r *runners) run(e *entry) {
	select {
	case r.next <- e:
	default:
		go r.serve(e)
	}
}

func (r *runners) serve(e *entry) {
	for e != nil {
		for e != nil {
			e = e.lane.org.carry(e)
		}
		e = r.wait()
	}
}

// wait returns an entry that was started; nil: this goroutine isn't needed.
func (r *runners) wait() *entry {
	defer r.waiting.Add(-1)
	if r.waiting.Add(1) > runnersKept {
		return nil
	}
	select {
	case e := <-r.next:
		return e
	case <-r.done:
		return nil
	}
}
