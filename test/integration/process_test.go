package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/zoho/zohotest"
)

// What the tests set so that waiting for a dead worker is short. The lease of a
// claim is the call timeout and 5 s.
const (
	crashCallTimeout = 3 * time.Second
	crashAckWait     = 3 * time.Second
	crashStopTimeout = 10 * time.Second
)

// The builds of the worker that tests start: with its fail points, and as `make
// build` makes it.
const (
	failpointBuild  = "failpoint"
	productionBuild = "production,grpcnotrace"
)

// built are the worker's binaries by build, each built once per run.
var built struct {
	sync.Mutex
	dir   string
	paths map[string]string
}

func binary(t testing.TB, tags string) string {
	t.Helper()
	built.Lock()
	defer built.Unlock()
	if path := built.paths[tags]; path != "" {
		return path
	}
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "zoho-worker-bin-")
		if err != nil {
			t.Fatal(err)
		}
		built.dir, built.paths = dir, map[string]string{}
	}
	path := filepath.Join(built.dir, fmt.Sprintf("worker-%d", len(built.paths)))
	build := exec.Command("go", "build", "-tags", tags, "-o", path, "../../cmd/worker")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the worker with -tags %s: %v\n%s", tags, err, out)
	}
	built.paths[tags] = path
	return path
}

// process is a worker in a process of its own.
type process struct {
	t   testing.TB
	cmd *exec.Cmd
	// gone is closed when it has ended.
	gone chan struct{}
}

// process starts `worker run` with its fail points; the test kills what is left of it.
func (r *rig) process(env ...string) *process {
	r.t.Helper()
	return r.run(failpointBuild, env...)
}

// run is process for any build.
func (r *rig) run(tags string, env ...string) *process {
	r.t.Helper()
	return r.start(exec.Command(binary(r.t, tags), "run"), env...)
}

// start is process for any command.
func (r *rig) start(cmd *exec.Cmd, env ...string) *process {
	r.t.Helper()
	cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME"),
		"NATS_URL=" + r.NATSURL, "REDIS_URL=" + r.RedisURL,
		"ZOHO_CLIENT_ID=1000.TEST", "ZOHO_CLIENT_SECRET=test-secret",
		"ZOHO_ACCOUNTS_URL=" + r.ZohoURL, "ZOHO_API_URL=" + r.ZohoURL,
		"ENCRYPTION_KEYS=" + r.keys.Reveal(), "HTTP_ADDR=127.0.0.1:0",
		"CALL_TIMEOUT=" + crashCallTimeout.String(), "ACK_WAIT=" + crashAckWait.String(),
		"STOP_TIMEOUT=" + crashStopTimeout.String(), "LOG_FORMAT=text", "LOG_LEVEL=debug", "NO_COLOR=1",
	}, env...)
	cmd.Stderr = &r.logs.text
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	p := &process{t: r.t, cmd: cmd, gone: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(p.gone)
	}()
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.gone
	})
	return p
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

// died waits for the end of the process, which must be by SIGKILL.
func (p *process) died() {
	p.t.Helper()
	select {
	case <-p.gone:
	case <-time.After(patience):
		p.t.Fatalf("the worker is not dead after %s", patience)
	}
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		p.t.Fatalf("the worker ended with %s, not by SIGKILL", p.cmd.ProcessState)
	}
}

// request is a request and what came of it.
type request struct {
	doc
	name    string // Last_Name of the record that it inserts, "" for anything else
	inbox   bool
	replies [][]byte
}

func (q *request) id() string     { return fmt.Sprint(q.doc["id"]) }
func (q *request) method() string { return fmt.Sprint(q.doc["method"]) }

// fleeting: answered to the inbox, not stored.
func (q *request) fleeting() bool { return q.inbox && q.method() == "GET" }

// workload is a set of requests of demo and everything to tell what became of them.
type workload struct {
	*rig
	requests map[string]*request
	mu       sync.Mutex // guards the requests' replies
}

// workload returns one without requests.
func (r *rig) workload() *workload { return &workload{rig: r, requests: map[string]*request{}} }

// add makes a request; with inbox the reply goes there.
func (w *workload) add(d doc, inbox bool) *request {
	w.t.Helper()
	q := &request{doc: d, inbox: inbox}
	if q.method() == "POST" {
		q.name = "Record " + q.id()
		d["body"] = doc{"data": []doc{{"Last_Name": q.name}}}
	}
	if inbox {
		subject := w.nc.NewInbox()
		d["reply_to"] = subject
		sub, err := w.nc.SubscribeSync(subject)
		if err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(func() { _ = sub.Unsubscribe() })
		go func() {
			for {
				msg, err := sub.NextMsg(time.Hour)
				if err != nil {
					return
				}
				w.mu.Lock()
				q.replies = append(q.replies, msg.Data)
				w.mu.Unlock()
			}
		}()
	}
	w.requests[q.id()] = q
	return q
}

// mix adds n requests of every kind: half are inserts, half are waited for.
func (w *workload) mix(n int) (added []*request) {
	w.t.Helper()
	records := w.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Updated"}, map[string]any{"Last_Name": "Updated"})
	for i := range n {
		inbox := i%4 < 2
		switch i % 6 {
		case 0, 2, 5:
			added = append(added, w.add(doc{"id": w.id("post"), "method": "POST", "url": "/v8/Leads"}, inbox))
		case 1:
			added = append(added, w.add(doc{
				"id": w.id("put"), "method": "PUT", "url": "/v8/Leads/" + records[i%2],
				"body": doc{"data": []doc{{"Company": fmt.Sprint("Company ", i)}}},
			}, inbox))
		default:
			added = append(added, w.add(list(w.id("get")), inbox))
		}
	}
	return added
}

func (w *workload) publishAll(requests ...*request) {
	w.t.Helper()
	for _, q := range requests {
		w.publish("demo", q.doc)
	}
}

// claimed returns the ids with a claim and no response: whose outcome nobody
// can know if their worker is dead.
func (w *workload) claimed() map[string]bool {
	w.t.Helper()
	ids := map[string]bool{}
	for subject, msg := range w.last(ledger.StreamName) {
		var claim struct{ State string }
		if err := json.Unmarshal(msg.Data, &claim); err != nil {
			w.t.Fatal(err)
		}
		if claim.State == "claimed" {
			ids[strings.TrimPrefix(subject, "zoho.claims.demo.")] = true
		}
	}
	for subject := range w.last(consumer.ResponseStream) {
		delete(ids, strings.TrimPrefix(subject, consumer.ResponseSubject("demo", "")))
	}
	return ids
}

// last returns the last message of each subject of a stream.
func (r *rig) last(name string) map[string]*jetstream.RawStreamMsg {
	r.t.Helper()
	stream, err := r.js.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	last := map[string]*jetstream.RawStreamMsg{}
	state := stream.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		if msg, err := stream.GetMsg(r.t.Context(), seq); err == nil {
			last[msg.Subject] = msg
		}
	}
	return last
}

// outcome is what became of a workload.
type outcome struct {
	unknown map[string]bool
}

// verify waits until everything is answered and checks the invariants I1 to I5
// of failures.md, I4 apart, for which it returns the unknown outcomes.
func (w *workload) verify() outcome {
	w.t.Helper()
	stored := 0
	for _, q := range w.requests {
		if !q.fleeting() {
			stored++
		}
	}
	responses := w.awaitAll("demo", stored)
	raw := w.last(consumer.ResponseStream)
	w.drained()
	if n := len(w.last(consumer.DeadStream)); n != 0 {
		w.t.Errorf("%d dead letters", n)
	}
	executed, sent := w.executed(), w.posts()
	o := outcome{unknown: map[string]bool{}}
	for id, q := range w.requests {
		if q.inbox {
			eventually(w.t, "a reply to "+id, func() bool {
				w.mu.Lock()
				defer w.mu.Unlock()
				return len(q.replies) > 0
			})
		}
		w.mu.Lock()
		replies := q.replies
		w.mu.Unlock()
		if q.fleeting() {
			for _, data := range replies {
				response, err := envelope.DecodeResponse(data)
				if err != nil {
					w.t.Fatal(err)
				}
				wantStatus(w.t, response, 200)
			}
			continue
		}
		response := responses[id]
		if response == nil {
			w.t.Fatalf("no response to %s", id)
		}
		for _, data := range replies {
			if want := raw[consumer.ResponseSubject("demo", id)].Data; !bytes.Equal(data, want) {
				w.t.Errorf("the reply to %s is\n%s\nand the stored response\n%s", id, data, want)
			}
		}
		switch {
		case q.name == "":
			wantStatus(w.t, response, 200)
		case response.Error != nil:
			wantCode(w.t, response, envelope.OutcomeUnknown)
			o.unknown[id] = true
		default:
			wantStatus(w.t, response, 201)
			if executed[q.name] != 1 {
				w.t.Errorf("%s is answered 201 and was executed %d times", id, executed[q.name])
			}
		}
		if q.name != "" && (executed[q.name] > 1 || sent[q.name] > 1) {
			w.t.Errorf("%s was sent %d times and executed %d times", id, sent[q.name], executed[q.name])
		}
	}
	return o
}

// posts returns how often each Last_Name arrived in a POST, executed or not.
func (r *rig) posts() map[string]int {
	count := map[string]int{}
	for _, call := range r.Zoho.Find(zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"}) {
		if call.BodySHA256 == "" {
			continue // its body is on its way, or was cut off with its worker
		}
		var body struct {
			Data []struct {
				Name string `json:"Last_Name"`
			}
		}
		if err := json.Unmarshal(call.Body, &body); err != nil || len(body.Data) != 1 {
			r.t.Errorf("a POST with the body %q", call.Body)
			continue
		}
		count[body.Data[0].Name]++
	}
	return count
}

// clients waits until n connections are left on the NATS server: what a dead
// worker had written by then is in the streams.
func (r *rig) clients(n int) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("%d connections left on the NATS server", n), func() bool { return r.NATS.NumClients() == n })
}

// started waits until n processes have logged that they take requests.
func (r *rig) started(n int) {
	r.t.Helper()
	eventually(r.t, fmt.Sprintf("%d workers have started", n), func() bool {
		return strings.Count(r.logs.text.String(), "worker started") >= n
	})
}

// backlog is the number of requests in the stream.
func (r *rig) backlog() uint64 {
	r.t.Helper()
	return r.requests().CachedInfo().State.Msgs
}
