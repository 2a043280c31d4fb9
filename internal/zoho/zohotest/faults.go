package zohotest

import (
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Cut says how a connection ends without an answer.
type Cut uint8

// The ways to cut a connection.
const (
	NoCut Cut = iota
	Close     // FIN: the client reads EOF
	Reset     // RST: the client reads "connection reset by peer"
)

// Fault is something that goes wrong with a call. The constructors in
// misfortunes.go make the usual ones; the methods On, ForOrg, Repeat, After and
// Applied narrow and bend them:
//
//	s.Inject(zohotest.InternalError().On("POST", "/crm/v8/Leads").Applied())
//
// A fault that neither answers nor cuts lets the call execute and answer for itself.
type Fault struct {
	Match
	Name  string // in Call.Fault
	Times int    // how many calls it takes; 0: one, negative: for ever
	Skip  int    // how many matching calls it lets pass first

	Unread  bool          // strike before the body is read; the call doesn't execute
	Execute bool          // execute the call although Answer or Cut hide its own answer
	Before  time.Duration // wait before executing, even if the client goes away
	Wait    time.Duration // wait after executing
	Answer  *Answer       // instead of the call's own
	Edit    func(*Answer) // bends the answer; it owns the header
	Cut     Cut           // instead of any answer

	refuse func(fields map[string]any) string // the code for which a record isn't written; "": it is
	send   func(*exchange, *Answer)           // how the answer is written; nil: at once and whole
}

// On narrows the fault to a method ("" for all) and a path, as in Match.
func (f Fault) On(method, path string) Fault {
	f.Method, f.Path = method, path
	return f
}

// ForOrg narrows the fault to the calls of one org.
func (f Fault) ForOrg(id string) Fault {
	f.Org = id
	return f
}

// If narrows the fault to calls for which where is true.
func (f Fault) If(where func(Call) bool) Fault {
	f.Where = where
	return f
}

// Repeat lets the fault strike n calls; negative: for ever.
func (f Fault) Repeat(n int) Fault {
	f.Times = n
	return f
}

// After lets n matching calls pass first.
func (f Fault) After(n int) Fault {
	f.Skip = n
	return f
}

// Applied lets the call execute before the fault strikes: "applied, then 500".
func (f Fault) Applied() Fault {
	f.Execute = true
	return f
}

// executes tells whether the call does its work.
func (f *Fault) executes() bool { return f.Execute || f.Answer == nil && f.Cut == NoCut }

// faults are the ones injected and not used up, in order.
type faults struct {
	any  atomic.Bool
	mu   sync.Mutex
	list []*Fault
}

// Inject adds a fault after those already there. The first one that matches a call
// strikes, and only that one. Faults that execute pass over calls that would be
// refused anyway (401, 429): they stay for the next one.
func (s *Server) Inject(f Fault) {
	if f.Times == 0 {
		f.Times = 1
	}
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.list = append(s.faults.list, &f)
	s.faults.any.Store(true)
}

// ClearFaults removes all faults.
func (s *Server) ClearFaults() {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	s.faults.list = nil
	s.faults.any.Store(false)
}

// FaultsLeft is the number of faults that are not used up, endless ones included.
func (s *Server) FaultsLeft() int {
	s.faults.mu.Lock()
	defer s.faults.mu.Unlock()
	return len(s.faults.list)
}

// take returns the fault that strikes this call, if any, and uses it up by one.
func (l *faults) take(x *exchange) *Fault {
	if !l.any.Load() {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, f := range l.list {
		if f.Execute && x.refused != nil || !f.matches(&x.call) {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		struck := *f
		if f.Times > 0 {
			if f.Times--; f.Times == 0 {
				l.list = slices.Delete(l.list, i, i+1)
				l.any.Store(len(l.list) > 0)
			}
		}
		return &struck
	}
	return nil
}

// AnswerWith answers with a status, a body and headers ("Name", "value", …).
func AnswerWith(name string, status int, body string, header ...string) Fault {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Add(header[i], header[i+1])
	}
	return Fault{Name: name, Answer: &Answer{Status: status, Header: h, Body: []byte(body)}}
}
