//go:build failpoint

package integration

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/failpoint"
	"zoho-worker/internal/zoho/zohotest"
)

// The same steps without a process: at each point the worker's goroutine stays
// where it is and the worker's connection to NATS is cut for good, so to
// everybody else it is dead. Another worker takes over.
//
// Not parallel: the hooks are the process's. What takes long, waiting for the
// dead worker's requests, the rounds do together.
func TestAbandonedAtEachPoint(t *testing.T) {
	for _, c := range crashes {
		if c.point == "" {
			continue
		}
		r := newRig(t, zohotest.Options{})
		r.demo(1)
		w := r.workload()
		q := w.add(doc{"id": "one", "method": "POST", "url": "/v8/Leads"}, true)
		reached, resume := make(chan struct{}), make(chan struct{})
		var once sync.Once
		failpoint.Set(c.point, func() {
			once.Do(func() { close(reached) })
			<-resume
		})
		wire := r.wire()
		dead := r.worker(short, func(c *app.Config) { c.NATSURL = "nats://" + wire.Addr().String() })
		release := sync.OnceFunc(func() { close(resume) })
		t.Cleanup(release) // or stopping it, which comes next, would wait for ever
		w.publishAll(q)
		select {
		case <-reached:
		case <-time.After(patience):
			t.Fatalf("%s is never reached", c.point)
		}
		failpoint.Set(c.point, nil)
		wire.cut()
		r.clients(1)
		t.Run(string(c.point), func(t *testing.T) {
			t.Parallel()
			r.worker(short)
			defer func() {
				release()
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				dead.Stop(ctx)
			}()
			if got := w.verify(); got.unknown["one"] != c.unknown {
				t.Errorf("unknown is %v, want %v", got.unknown["one"], c.unknown)
			}
			if n := r.executed()[q.name]; n != c.executed {
				t.Errorf("executed %d times, want %d", n, c.executed)
			}
		})
	}
}

func short(c *app.Config) {
	c.CallTimeout, c.AckWait, c.StopTimeout = crashCallTimeout, crashAckWait, crashStopTimeout
}

// wire is a way to the NATS server that can be cut.
type wire struct {
	net.Listener
	to    string
	mu    sync.Mutex
	gone  bool
	conns []net.Conn
	all   sync.WaitGroup
}

func (r *rig) wire() *wire {
	r.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	w := &wire{Listener: listener, to: strings.TrimPrefix(r.NATSURL, "nats://")}
	w.all.Go(w.serve)
	r.t.Cleanup(w.cut)
	return w
}

func (w *wire) serve() {
	for {
		near, err := w.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", w.to)
		w.mu.Lock()
		if err != nil || w.gone {
			_ = near.Close()
			if err == nil {
				_ = far.Close()
			}
			w.mu.Unlock()
			continue
		}
		w.conns = append(w.conns, near, far)
		w.mu.Unlock()
		for _, pair := range [][2]net.Conn{{near, far}, {far, near}} {
			w.all.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				_ = pair[0].Close()
			})
		}
	}
}

// cut ends all connections and lets no other through.
func (w *wire) cut() {
	w.mu.Lock()
	w.gone = true
	_ = w.Close()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
	w.mu.Unlock()
	w.all.Wait()
}
