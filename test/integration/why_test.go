package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zoho-worker/internal/app"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/zoho/zohotest"
)

// wantWhy waits until the request's state is the one, and checks what is said.
func (r *rig) wantWhy(name, id string, state inspect.State, contains ...string) {
	r.t.Helper()
	reader := &inspect.Reader{NC: r.nc, JS: r.js}
	var why *inspect.Why
	for deadline := time.Now().Add(patience); ; {
		var err error
		if why, err = reader.Why(r.t.Context(), name, id); err != nil {
			r.t.Fatal(err)
		}
		if why.State == state || time.Now().After(deadline) {
			break
		}
	}
	r.t.Logf("%s: %s", why.State, why.Sentence)
	if why.State != state {
		r.t.Fatalf("%s is %s: %s; want %s", id, why.State, why.Sentence, state)
	}
	for _, s := range contains {
		if !strings.Contains(why.Sentence, s) {
			r.t.Errorf("%q does not say %q", why.Sentence, s)
		}
	}
}

// Each thing that a request can wait for is told.
func TestWhy(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(2)
	r.Zoho.AddOrg(zohotest.Org{ID: "880", Name: "Limited", Concurrency: 5})
	r.connect("limited", "880", 5)
	r.Zoho.AddOrg(zohotest.Org{ID: "990", Name: "Gone", Concurrency: 5})
	r.connect("gone", "990", 5)

	r.publish("demo", list("early"))
	r.wantWhy("demo", "early", inspect.NoWorker, "is one running?")
	r.wantWhy("demo", "nothing", inspect.Unknown, "neither a request nothing of demo nor a response")

	w := r.worker()
	r.await("demo", "early")
	r.wantWhy("demo", "early", inspect.Answered, "with Zoho's 200 after 1 attempt")
	r.wantWhy("nobody", "x", inspect.Unknown)
	r.wantWhy("No.Body", "x", inspect.Stranger, "can't be the name")

	r.revoke(w, "gone", "Zoho no longer accepts it")
	r.publish("gone", list("parked"))
	r.wantWhy("gone", "parked", inspect.Authorization, "gone is revoked since", "Zoho no longer accepts it", "until its deadline at")

	// Two places, taken by calls that last; the others wait in line.
	r.Zoho.Inject(zohotest.DelayBefore(4*time.Second).On("GET", "/crm/v8/Contacts").Repeat(2))
	for i := range 12 {
		r.publish("demo", doc{"id": fmt.Sprintf("c%d", i), "method": "GET", "url": "/v8/Contacts", "query": doc{"fields": "Last_Name"}})
	}
	r.wantWhy("demo", "c0", inspect.InCall, "in hand of worker", "since")
	r.wantWhy("demo", "c11", inspect.Queued, "2 of the org's 2 places are taken", "requests are before it")

	r.Zoho.Inject(zohotest.AnswerWith("limit", 429, `{"code":"TOO_MANY_REQUESTS","message":"x","status":"error","details":{}}`,
		"Retry-After", "60", "Content-Type", "application/json").On("GET", "/crm/v8/Accounts").Repeat(-1))
	for i := range 8 {
		r.publish("limited", doc{"id": fmt.Sprintf("p%d", i), "method": "GET", "url": "/v8/Accounts", "query": doc{"fields": "Last_Name"}})
	}
	r.wantWhy("limited", "p7", inspect.Paused, "paused for another", "because Zoho answered 429 TOO_MANY_REQUESTS", "until its deadline")

	overview, err := (&inspect.Reader{NC: r.nc, JS: r.js}).Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(overview.Workers) != 1 || overview.Workers[0].MaxInFlight != 512 || overview.Connections["active"] != 2 || overview.Connections["revoked"] != 1 {
		t.Fatalf("workers %+v, connections %v", overview.Workers, overview.Connections)
	}
	if len(overview.Troubled) != 1 || overview.Troubled[0].Name != "gone" {
		t.Fatalf("troubled: %+v", overview.Troubled)
	}
	var paused, unqueued bool
	for _, q := range overview.Queues {
		paused = paused || q.Paused > 0 && q.Cause == "429 TOO_MANY_REQUESTS" && q.For == flow.Concurrency && q.Places < 5
	}
	for _, u := range overview.Unqueued {
		unqueued = unqueued || u.Connection == "gone" && u.Requests == 1
	}
	if !paused || !unqueued {
		t.Fatalf("queues %+v, unqueued %+v", overview.Queues, overview.Unqueued)
	}
	for _, s := range overview.Streams {
		if s.Missing || s.Err != "" {
			t.Fatalf("stream %+v", s)
		}
	}
}

// What requests wait for is in the log too, in words: one line for an org, not one
// for each request.
func TestLogSaysWhatRequestsWaitFor(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	for name, id := range map[string]string{"full": "660", "paused": "770", "ordered": "880", "gone": "990"} {
		r.Zoho.AddOrg(zohotest.Org{ID: id, Name: name, Concurrency: 2})
		r.connect(name, id, 2)
	}
	r.markRevoked("gone", "test")
	long := func(c *app.Config) { c.CallTimeout, c.StopTimeout = 2*patience, 3*patience }
	r.worker(long)
	hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"})
	defer hold.Release()
	r.Zoho.Inject(zohotest.AnswerWith("limit", 429, "", "Retry-After", "90").On("GET", "/crm/v8/Accounts").Repeat(-1))
	// They were stored a while ago, and moved from another lane since.
	ago := time.Now().Add(-time.Minute).UTC().Format(time.RFC3339Nano)
	publish := func(name string, d doc) {
		t.Helper()
		data, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.js.PublishMsg(t.Context(), &nats.Msg{Subject: "zoho.requests." + name + ".heavy", Data: data, Header: nats.Header{"Zoho-Stored": {ago}}}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 12 {
		publish("full", insert(fmt.Sprint("f", i), fmt.Sprint("Full", i)))
		publish("paused", doc{"id": fmt.Sprint("p", i), "method": "GET", "url": "/v8/Accounts", "query": doc{"fields": "Account_Name"}})
		ordered := insert(fmt.Sprint("o", i), fmt.Sprint("Ordered", i))
		ordered["order_key"] = "k"
		publish("ordered", ordered)
		publish("gone", list(fmt.Sprint("g", i)))
	}
	lines := func() (found []string) {
		for line := range strings.Lines(r.logs.text.String()) {
			if strings.Contains(line, `msg="requests wait"`) {
				found = append(found, strings.TrimSpace(line))
			}
		}
		return found
	}
	for _, want := range []string{
		`connection=full id=f2 .* requests=10 reason=place why="all 2 places of the org are taken by its calls under way"`,
		`connection=paused id=p\d+ .* requests=12 reason=pause why="Zoho refuses more calls of the org \(429.*\), until 2`,
		`connection=ordered id=o1 .* requests=11 reason=order why="it starts when the one before it is answered"`,
		`connection=gone id="" waited_ms=0 requests=12 reason=authorization why="the connection is revoked: it has to be authorized again"`,
	} {
		form := regexp.MustCompile(want)
		eventually(t, want, func() bool { return slices.ContainsFunc(lines(), form.MatchString) })
	}
	for _, line := range lines() {
		t.Log(line)
	}
	if n := len(lines()); n > 8 {
		t.Errorf("%d lines for four orgs", n)
	}
}

// An org's limit and its pause change while the workers run.
func TestLimitAndPauseChangeAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(2)
	r.Zoho.AddOrg(zohotest.Org{ID: devbox.OrgID, Name: "Demo", Concurrency: 20})
	r.worker()
	command := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(binary(t, failpointBuild), args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NATS_URL=" + r.NATSURL, "ENCRYPTION_KEYS=" + r.keys.Reveal(), "REDIS_URL="}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("worker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	binary(t, failpointBuild) // the time to build it is not that of the requests
	r.Zoho.Inject(zohotest.DelayBefore(time.Second).On("GET", "/crm/v8/Contacts").Repeat(-1))
	for i := range 40 {
		r.publish("demo", doc{"id": fmt.Sprintf("c%d", i), "method": "GET", "url": "/v8/Contacts", "query": doc{"fields": "Last_Name"}})
	}
	r.wantWhy("demo", "c39", inspect.Queued, "of the org's 2 places")
	command("connections", "limit", "demo", "7")
	r.wantWhy("demo", "c39", inspect.Queued)
	eventually(t, "the limit is 7", func() bool {
		queues, _, err := (&inspect.Reader{NC: r.nc, JS: r.js}).Queues(t.Context())
		return err == nil && len(queues) == 1 && queues[0].Places == 7 && queues[0].InFlight == 7
	})
	command("queues", "pause", "demo", "1h", "--reason", "migration")
	r.wantWhy("demo", "c39", inspect.Paused, "is paused for another", "by hand: migration")
	if out := command("status"); !strings.Contains(out, "by hand: migration") {
		t.Errorf("status:\n%s", out)
	}
	if out := command("status", "--json"); !strings.Contains(out, `"cause": "by hand: migration"`) {
		t.Errorf("status --json:\n%s", out)
	}
	command("queues", "resume", "demo")
	r.Zoho.ClearFaults()
	r.await("demo", "c39")
	// A refusal of Zoho's pauses it again, though this worker knew of a longer pause.
	r.Zoho.Inject(zohotest.AnswerWith("limit", 429, "", "Retry-After", "30").On("GET", "/crm/v8/Accounts").Repeat(-1))
	r.publish("demo", doc{"id": "refused", "method": "GET", "url": "/v8/Accounts", "query": doc{"fields": "Account_Name"}})
	r.wantWhy("demo", "refused", inspect.Paused, "because Zoho answered 429")
}

// SIGHUP, or a changed file, changes the log level of a running worker, and nothing
// else.
func TestHangup(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(2)
	config := filepath.Join(t.TempDir(), "worker.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("log-level: warn\n")
	worker := r.process("CONFIG="+config, "LOG_LEVEL=")
	wantStatus(t, r.call("demo", list("quiet")), 200)
	write("log-level: info\nmax-in-flight: 3\n")
	worker.signal(syscall.SIGHUP)
	eventually(t, "the configuration is read again", func() bool {
		return strings.Contains(r.logs.text.String(), "some settings change with a restart only")
	})
	wantStatus(t, r.call("demo", list("loud")), 200)
	eventually(t, "the request is logged", func() bool { return strings.Contains(r.logs.text.String(), "id=loud") })
	if text := r.logs.text.String(); strings.Contains(text, "id=quiet") || !strings.Contains(text, "max-in-flight") {
		t.Fatalf("log:\n%s", text)
	}
	write("log-level: [\n")
	worker.signal(syscall.SIGHUP)
	eventually(t, "the fault is told", func() bool { return strings.Contains(r.logs.text.String(), "configuration not taken") })
	wantStatus(t, r.call("demo", list("still")), 200)
	// Nobody needs to send a signal: a container may have nobody who could.
	write("log-level: error\n")
	eventually(t, "the file is seen", func() bool { return strings.Contains(r.logs.text.String(), "log_level=error") })
	write("log-level: debug\n")
	eventually(t, "the file is seen again", func() bool { return strings.Contains(r.logs.text.String(), "log_level=debug") })
	wantStatus(t, r.call("demo", list("debugged")), 200)
	eventually(t, "the request is logged", func() bool { return strings.Contains(r.logs.text.String(), "id=debugged") })
}

// An answer that there is no room for is told, and not that its claim is over; with
// room it is stored.
func TestWhyAnAnswerIsNotStored(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(2)
	r.worker()
	room := func(bytes int64) {
		stream, err := r.js.Stream(t.Context(), consumer.ResponseStream)
		if err != nil {
			t.Fatal(err)
		}
		config := stream.CachedInfo().Config
		config.MaxBytes = bytes
		if _, err := r.js.UpdateStream(t.Context(), config); err != nil {
			t.Fatal(err)
		}
	}
	room(1)
	r.publish("demo", insert("i", "One"))
	reader := &inspect.Reader{NC: r.nc, JS: r.js}
	eventually(t, "why says that the answer is not stored", func() bool {
		why, err := reader.Why(t.Context(), "demo", "i")
		return err == nil && why.State == inspect.InCall && strings.Contains(why.Sentence, "maximum bytes exceeded); that is tried again") &&
			!strings.Contains(why.Sentence, "claim")
	})
	room(-1)
	wantStatus(t, r.await("demo", "i"), 201)
}
