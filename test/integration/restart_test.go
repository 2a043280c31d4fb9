package integration

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho/zohotest"
)

// F6: a worker is suspended between claim and send for longer than its lease.
// Another one says that the outcome is unknown; the first one, awake again,
// sends nothing.
func TestSuspendedWorker(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(1)
	w := r.workload()
	q := w.add(doc{"id": "one", "method": "POST", "url": "/v8/Leads"}, true)
	suspended := w.process("FAILPOINT=claimed:1:STOP")
	w.publishAll(q)
	eventually(t, "the worker is suspended", suspended.suspended)
	w.process()
	wantCode(t, w.await("demo", "one"), envelope.OutcomeUnknown)
	if n := r.Zoho.Count(zohotest.Match{Method: "POST"}); n != 0 {
		t.Fatalf("%d POSTs before the worker is awake", n)
	}
	before := strings.Count(r.logs.text.String(), "request settled")
	suspended.signal(syscall.SIGCONT)
	// Its own way through ends as it does for a request that waits, with the
	// stored response repeated at most; what it does then it does at once.
	after := w.add(doc{"id": "two", "method": "POST", "url": "/v8/Leads"}, true)
	w.publishAll(after)
	wantStatus(t, w.await("demo", "two"), 201)
	eventually(t, "the suspended worker gives the request back, or settles it", func() bool {
		log := r.logs.text.String()
		return strings.Contains(log, "request waits") || strings.Count(log, "request settled") > before+1
	})
	suspended.signal(syscall.SIGTERM)
	suspended.exited()
	if got := w.verify(); !got.unknown["one"] || got.unknown["two"] {
		t.Errorf("unknown are %v", got.unknown)
	}
	if n := r.posts()[q.name]; n != 0 {
		t.Errorf("the worker that was suspended sent the insert")
	}
}

// F5: three workers are restarted one after the other under load, and again:
// nothing is lost, doubled or unknown, and each ends within its budget.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.Zoho.SetLatency(20 * time.Millisecond)
	w := r.workload()
	var running []*process
	for range 3 {
		running = append(running, r.process())
	}
	r.started(3)
	const restarts, n = 6, 50 // requests for each restart
	for i := range restarts {
		next := r.process()
		r.started(4 + i)
		w.publishAll(w.mix(n)...)
		eventually(t, "calls are in flight", func() bool { return r.Zoho.InFlight(devbox.OrgID) > 0 })
		running[0].signal(syscall.SIGTERM)
		running[0].exited()
		running = append(running[1:], next)
	}
	if got := w.verify(); len(got.unknown) != 0 {
		t.Errorf("%d outcomes are unknown after clean stops: %v", len(got.unknown), got.unknown)
	}
}

// F9 on a single server: it stops and starts again while requests are in
// flight. Everything is answered, no insert is sent twice, and none is unknown:
// no worker died.
func TestNATSRestart(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.Zoho.SetLatency(20 * time.Millisecond)
	patient := func(c *app.Config) { c.CallTimeout, c.StopTimeout = 15*time.Second, 20*time.Second }
	r.worker(patient)
	r.worker(patient)
	w := r.workload()
	w.publishAll(w.mix(150)...)
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	for _, n := range []int{15, 40} {
		if err := r.Zoho.Await(ctx, n, zohotest.Match{Method: "POST"}); err != nil {
			t.Fatal(err)
		}
		if err := r.RestartNATS(); err != nil {
			t.Fatal(err)
		}
		r.connectedAgain()
	}
	if got := w.verify(); len(got.unknown) != 0 {
		t.Errorf("unknown: %v", got.unknown)
	}
}

// suspended reports whether the process is stopped by a signal.
func (p *process) suspended() bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if os.IsNotExist(err) {
		p.t.Skip("no /proc on this system")
	}
	_, rest, ok := strings.Cut(string(stat), ") ")
	return ok && strings.HasPrefix(rest, "T")
}

// exited waits for a clean end within the stop budget, and a moment for the process itself.
func (p *process) exited() {
	p.t.Helper()
	select {
	case <-p.gone:
	case <-time.After(crashStopTimeout + 5*time.Second):
		p.t.Fatalf("the worker has not ended within its budget of %s", crashStopTimeout)
	}
	if status := p.cmd.ProcessState; status.ExitCode() != 0 {
		p.t.Fatalf("the worker ended with %s", status)
	}
}
