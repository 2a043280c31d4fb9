package zohotest

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Stage is a moment in the life of a call at which a test may step in.
type Stage uint8

// The stages of a call, in order. A call that is cut skips the ones in between.
const (
	Arrived  Stage = iota // the headers are there, nothing of the body was read
	BodyRead              // the body was read whole, nothing was executed
	Executed              // the call was executed, nothing was answered
	Answered              // the ledger has the call as finished; its last bytes leave now
)

// hooks are the functions that tests have attached to calls.
type hooks struct {
	any  atomic.Bool // spares calls the lock when there is no hook
	mu   sync.Mutex
	list []*hook
}

type hook struct {
	stage Stage
	match Match
	f     func(Call)
}

// OnCall runs f at that stage of every call that matches, on the call's own
// goroutine: the call goes on when f returns.
func (s *Server) OnCall(stage Stage, m Match, f func(Call)) (remove func()) {
	h := &hook{stage, m, f}
	s.hooks.mu.Lock()
	defer s.hooks.mu.Unlock()
	s.hooks.list = append(s.hooks.list, h)
	s.hooks.any.Store(true)
	return func() {
		s.hooks.mu.Lock()
		defer s.hooks.mu.Unlock()
		s.hooks.list = slices.DeleteFunc(s.hooks.list, func(o *hook) bool { return o == h })
		s.hooks.any.Store(len(s.hooks.list) > 0)
	}
}

func (h *hooks) run(stage Stage, x *exchange) {
	if !h.any.Load() {
		return
	}
	h.mu.Lock()
	list := slices.Clone(h.list)
	h.mu.Unlock()
	for _, o := range list {
		if o.stage == stage && o.match.matches(&x.call) {
			o.f(x.call)
		}
	}
}

// Hold stops matching calls at a stage until it is released.
type Hold struct {
	reached  chan Call
	released chan struct{}
	once     sync.Once
	remove   func()
}

// Hold stops every matching call at that stage until Release, or until the server
// is closed.
func (s *Server) Hold(stage Stage, m Match) *Hold {
	h := &Hold{reached: make(chan Call, 4096), released: make(chan struct{})}
	h.remove = s.OnCall(stage, m, func(c Call) {
		select {
		case h.reached <- c:
		default: // nobody counts that many held calls
		}
		select {
		case <-h.released:
		case <-s.closed:
		}
	})
	return h
}

// Reached gets each call that is stopped, up to 4096 that nobody has taken.
func (h *Hold) Reached() <-chan Call { return h.reached }

// Release lets all go and stops no more. It may be called twice.
func (h *Hold) Release() {
	h.once.Do(func() {
		h.remove()
		close(h.released)
	})
}
