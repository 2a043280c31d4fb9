package integration

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// Every request published twice, two workers: each insert is executed once, each
// id has one response, and both copies are answered alike.
func TestEverythingTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	const n = 100
	for i := range n {
		d := insert(fmt.Sprint("twice-", i), fmt.Sprint("Twice", i))
		r.publish("demo", d)
		r.publish("demo", d)
	}
	r.worker()
	r.worker()
	for id, response := range r.awaitAll("demo", n) {
		if response.Status != 201 || response.Error != nil {
			t.Fatalf("%s is %s", id, response.AppendJSON(nil))
		}
	}
	r.drained()
	got := r.executed()
	for i := range n {
		if got[fmt.Sprint("Twice", i)] != 1 {
			t.Fatalf("record %d was inserted %d times", i, got[fmt.Sprint("Twice", i)])
		}
	}
}

// F29, F32: an expired token and many requests on two workers are one refresh.
func TestOneRefreshPerExpiry(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(25)
	r.worker()
	r.worker()
	wantStatus(t, r.call("demo", list("warm")), 200)
	before := r.Zoho.RefreshAttempts()
	if before != 1 {
		t.Fatalf("%d refreshes to begin with", before)
	}
	r.Zoho.ExpireAccessTokens()
	const n = 200
	for i := range n {
		d := list(fmt.Sprint("read-", i))
		r.publish("demo", d)
	}
	for id, response := range r.awaitAll("demo", n) {
		if response.Status != 200 || response.Error != nil {
			t.Fatalf("%s is %s", id, response.AppendJSON(nil))
		}
	}
	if got := r.Zoho.RefreshAttempts() - before; got != 1 {
		t.Fatalf("%d refreshes for one expiry", got)
	}
}

// F23 to F25: the claim in the token record holds what the lock can't.
func TestOneRefreshWithoutRedis(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]func(*rig){
		"flushed": func(r *rig) { r.redis.FlushAll() },
		"killed":  func(r *rig) { r.redis.Kill() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, zohotest.Options{})
			r.demo(25)
			for range 3 {
				r.worker()
			}
			wantStatus(t, r.call("demo", list("warm")), 200)
			before := r.Zoho.RefreshAttempts()
			// The fault strikes while the refresh is with Zoho.
			hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Endpoint: zohotest.Token})
			r.Zoho.ExpireAccessTokens()
			const n = 60
			for i := range n {
				r.publish("demo", list(fmt.Sprint("read-", i)))
			}
			<-hold.Reached()
			fault(r)
			hold.Release()
			for id, response := range r.awaitAll("demo", n) {
				if response.Status != 200 || response.Error != nil {
					t.Fatalf("%s is %s", id, response.AppendJSON(nil))
				}
			}
			if got := r.Zoho.RefreshAttempts() - before; got != 1 {
				t.Fatalf("%d refreshes for one expiry", got)
			}
		})
	}
}

// F36: an insert that was applied, then cut off, is unknown, told so, and never sent again.
func TestUnknownOutcome(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	r.worker()
	cases := map[string]zohotest.Fault{
		"cut":   zohotest.CutApplied(zohotest.Reset),
		"close": zohotest.CutApplied(zohotest.Close),
		"500":   zohotest.InternalError().Applied(),
		"503":   zohotest.Maintenance().Applied(),
		"html":  zohotest.HTMLError(502).Applied(),
	}
	for name, fault := range cases {
		r.Zoho.Inject(fault.On("POST", "/crm/v8/Leads"))
		got := r.call("demo", insert("applied-"+name, "Applied-"+name))
		wantCode(t, got, envelope.OutcomeUnknown, "look the record up")
		wantCode(t, r.call("demo", insert("applied-"+name, "Applied-"+name)), envelope.OutcomeUnknown)
	}
	for name := range cases {
		if n := r.executed()["Applied-"+name]; n != 1 {
			t.Errorf("%s: inserted %d times", name, n)
		}
	}
	// The same without the insert having happened: unknown too, and not sent again.
	r.Zoho.Inject(zohotest.CutRead(zohotest.Reset).On("POST", "/crm/v8/Leads"))
	wantCode(t, r.call("demo", insert("read", "Read")), envelope.OutcomeUnknown)
	eventually(t, "the log says why no answer came", func() bool {
		return regexp.MustCompile(`request settled.* id=read .*err=.*reset by peer`).MatchString(r.logs.text.String())
	})
	// Cut after the answer's status: it was carried out, its body is lost.
	r.Zoho.Inject(zohotest.Truncated(10).On("POST", "/crm/v8/Leads"))
	got := r.call("demo", insert("trunc", "Trunc"))
	wantCode(t, got, envelope.OutcomeUnknown, "201")
	if got.Status != 201 || r.executed()["Trunc"] != 1 || r.executed()["Read"] != 0 {
		t.Fatalf("response %s, executed %v", got.AppendJSON(nil), r.executed())
	}
}

// unique_field: an insert whose answer was lost is repeated, and the duplicate
// that Zoho reports is the record itself.
func TestUniqueField(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	r.Zoho.SetUnique(devbox.OrgID, "Leads", "Job_Key")
	r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("POST", "/crm/v8/Leads"))
	got := r.call("demo", doc{
		"id": "key-1", "method": "POST", "url": "/v8/Leads", "unique_field": "Job_Key",
		"body": doc{"data": []doc{{"Last_Name": "Keyed", "Job_Key": "key-1"}}},
	})
	wantStatus(t, got, 200)
	if got.Outcome != envelope.Confirmed || r.executed()["Keyed"] != 1 {
		t.Fatalf("response %s, executed %v", got.AppendJSON(nil), r.executed())
	}
	for _, record := range r.Zoho.Records(devbox.OrgID, "Leads") {
		if record["Last_Name"] == "Keyed" && !bytes.Contains(got.Body.Data, fmt.Appendf(nil, "%q", record["id"])) {
			t.Fatalf("the response %s does not name the record %v", got.Body.Data, record["id"])
		}
	}
}

// F33: one 429 pauses the org for all workers, nothing is lost, no insert doubled,
// and Retry-After is honoured.
func TestThrottle(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	r.worker()
	const after = 2 * time.Second
	var first, next time.Time
	r.Zoho.OnCall(zohotest.Arrived, zohotest.Match{Method: "POST"}, func(zohotest.Call) {
		if first.IsZero() {
			first = time.Now()
		} else if next.IsZero() {
			next = time.Now()
		}
	})
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.Concurrency, after).On("POST", ""))
	r.publish("demo", insert("first", "First"))
	eventually(t, "the first call is refused", func() bool { return r.Zoho.Count(zohotest.Match{Method: "POST"}) == 1 })
	eventually(t, "the org is paused, for whoever asks", func() bool {
		record, err := lease.Read(t.Context(), r.js, demoQueue)
		return err == nil && consumer.DecodeState(record.State).Pause != nil
	})
	for i := range 20 {
		r.publish("demo", insert(fmt.Sprint("p-", i), fmt.Sprint("P", i)))
	}
	for id, response := range r.awaitAll("demo", 21) {
		if response.Status != 201 || response.Error != nil {
			t.Fatalf("%s is %s", id, response.AppendJSON(nil))
		}
	}
	if next.Sub(first) < after*9/10 {
		t.Fatalf("the next call came %s after the refusal, Zoho said %s", next.Sub(first), after)
	}
	for name, n := range r.executed() {
		if n != 1 {
			t.Errorf("%s inserted %d times", name, n)
		}
	}
	if n := r.Zoho.Count(zohotest.Match{Method: "POST"}); n != 22 {
		t.Errorf("the simulator saw %d POSTs, want 22: the refused one and one each", n)
	}
}

// A request whose token takes longer than it may is answered at its deadline, and not
// sent after it.
func TestDeadlineWhileATokenIsMinted(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	r.worker()
	hold := r.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Endpoint: zohotest.Token})
	defer hold.Release()
	short := list("short")
	deadline := time.Now().Add(5 * time.Second)
	short["deadline"] = deadline.UTC().Format(time.RFC3339Nano)
	r.publish("demo", short)
	r.reached(hold)
	eventually(t, "its deadline is over", func() bool { return time.Now().After(deadline) })
	hold.Release()
	wantCode(t, r.await("demo", "short"), envelope.DeadlineExceeded, "before it was sent")
	wantStatus(t, r.call("demo", list("next")), 200)
	if n := r.Zoho.Count(zohotest.Match{Method: "GET"}); n != 1 {
		t.Errorf("%d calls, and only one was in time", n)
	}
}

// A paused org's requests are answered at their deadlines all the same.
func TestDeadlineInPause(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	wantStatus(t, r.call("demo", list("warm")), 200) // so that the next one is sent at once
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.CreditsExhausted, 20*time.Minute).On("GET", "").Repeat(-1))
	first := list("first")
	first["deadline"] = time.Now().Add(5 * time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", first), envelope.DeadlineExceeded, "429")
	soon := list("soon")
	soon["deadline"] = time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", soon), envelope.DeadlineExceeded)
	if n := r.Zoho.Count(zohotest.Match{Method: "GET"}); n != 2 {
		t.Fatalf("the simulator saw %d calls in the pause", n-2)
	}
	r.drained()
}

// F31: a revoked grant: requests wait, the org's other connections go on, and
// after re-authorization the waiting ones go on by themselves.
func TestRevokedAndReauthorized(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	refresh := r.demo(10)
	r.connect("other", devbox.OrgID, 10)
	r.worker()
	r.worker()
	wantStatus(t, r.call("demo", list("warm")), 200)
	r.Zoho.RevokeRefreshToken(refresh)
	const n = 30
	for i := range n {
		r.publish("demo", insert(fmt.Sprint("wait-", i), fmt.Sprint("Wait", i)))
	}
	eventually(t, "the connection is marked revoked", func() bool {
		c, err := r.store.Fetch(t.Context(), "demo")
		return err == nil && c.Status == connection.Revoked
	})
	for i := range n {
		wantStatus(t, r.call("other", list(fmt.Sprint("other-", i))), 200)
	}
	short := list("short")
	short["deadline"] = time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", short), envelope.ReauthorizationRequired)
	attempts := r.Zoho.RefreshAttempts()
	fresh := r.Zoho.GrantRefreshToken("user-of-demo")
	if _, err := r.store.Reauthorize(t.Context(), "demo", secret.New(fresh), nil); err != nil {
		t.Fatal(err)
	}
	got := r.awaitAll("demo", n)
	for id, response := range got {
		if response.Status != 201 || response.Error != nil {
			t.Fatalf("%s is %s", id, response.AppendJSON(nil))
		}
	}
	if n := r.Zoho.RefreshAttempts() - attempts; n != 1 {
		t.Errorf("%d refreshes after re-authorization", n)
	}
	for name, n := range r.executed() {
		if n != 1 {
			t.Errorf("%s inserted %d times", name, n)
		}
	}
	r.drained()
}

// The org's limit holds over three workers, and is used.
func TestConcurrency(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	r.connect("second", devbox.OrgID, 5)
	r.Zoho.SetLatency(20 * time.Millisecond)
	const n = 150
	for i := range n {
		r.publish("demo", list(fmt.Sprint("a-", i)))
		r.publish("second", list(fmt.Sprint("b-", i)))
	}
	for range 3 {
		r.worker()
	}
	r.awaitAll("demo", n)
	r.awaitAll("second", n)
	if got := r.Zoho.MaxInFlight(devbox.OrgID); got != 5 {
		t.Errorf("%d calls in flight at one time, the org's limit is 5", got)
	}
	if got := r.Zoho.Throttled(devbox.OrgID); got != 0 {
		t.Errorf("%d calls refused", got)
	}
}

// An org's backlog of 20,000 (BACKLOG says another number) does not hold up another org.
func TestBacklogOfAnotherOrg(t *testing.T) {
	t.Parallel()
	requests := 20_000
	if text := os.Getenv("BACKLOG"); text != "" {
		var err error
		if requests, err = strconv.Atoi(text); err != nil {
			t.Fatalf("BACKLOG: %v", err)
		}
	}
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	const flood = "770000099"
	r.Zoho.AddOrg(zohotest.Org{ID: flood, Name: "Flood", Concurrency: 10})
	r.connect("flood", flood, 10)
	r.Zoho.SetLatency(40 * time.Millisecond)
	r.worker(func(c *app.Config) { c.LogLevel = "error" })
	median := func(prefix string) time.Duration {
		var took []time.Duration
		for i := range 41 {
			begun := time.Now()
			wantStatus(t, r.call("demo", list(fmt.Sprint(prefix, i))), 200)
			took = append(took, time.Since(begun))
		}
		return middle(took)
	}
	median("warm-")
	alone := median("alone-")
	for i := range requests {
		if _, err := r.js.PublishAsync("zoho.requests.flood", fmt.Appendf(nil, `{"id":"f-%d","method":"GET","url":"/v8/Leads?fields=Last_Name"}`, i), jetstream.WithStallWait(patience)); err != nil {
			t.Fatal(err)
		}
	}
	<-r.js.PublishAsyncComplete()
	beside := median("beside-")
	stream, err := r.js.Stream(t.Context(), "ZOHO_REQUESTS")
	if err != nil {
		t.Fatal(err)
	}
	left := stream.CachedInfo().State.Msgs
	if left < 1000 {
		t.Fatalf("only %d requests are left of the backlog: it was no backlog", left)
	}
	// 20,000 requests at 10 places and 40 ms are 80 s: whoever is held up
	// behind them is so by three orders of magnitude, not by a factor of ten.
	if beside > 10*alone {
		t.Errorf("median %s beside a backlog of %d, %s alone", beside, left, alone)
	}
	t.Logf("median alone %s, beside a backlog of %d: %s", alone, left, beside)
}

func middle(d []time.Duration) time.Duration {
	for i := range d {
		for j := i; j > 0 && d[j] < d[j-1]; j-- {
			d[j], d[j-1] = d[j-1], d[j]
		}
	}
	return d[len(d)/2]
}

// A worker that stops finishes what it has begun and gives the rest back.
func TestStop(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(25)
	first := r.worker()
	r.Zoho.SetLatency(50 * time.Millisecond)
	const n = 200
	for i := range n {
		r.publish("demo", insert(fmt.Sprint("stop-", i), fmt.Sprint("Stop", i)))
	}
	if err := r.Zoho.Await(t.Context(), 20, zohotest.Match{Method: "POST"}); err != nil {
		t.Fatal(err)
	}
	stop(first)
	r.worker()
	for id, response := range r.awaitAll("demo", n) {
		if response.Status != 201 || response.Error != nil {
			t.Fatalf("%s is %s", id, response.AppendJSON(nil))
		}
	}
	for name, times := range r.executed() {
		if times != 1 {
			t.Errorf("%s inserted %d times", name, times)
		}
	}
	if posts := r.Zoho.Count(zohotest.Match{Method: "POST"}); posts != n {
		t.Errorf("the simulator saw %d POSTs for %d requests", posts, n)
	}
}

// Nothing secret is in what the workers log, measure and store, or in what requesters get.
func TestNoSecretsShow(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{ClientID: "1000.TEST", ClientSecret: "test-secret"})
	refresh := r.demo(10)
	w := r.worker()
	wantStatus(t, r.call("demo", list("a")), 200)
	wantStatus(t, r.call("demo", insert("taken", "Taken")), 201)
	r.publish("demo", insert("taken", "Other"))
	r.letter()
	r.Zoho.Inject(zohotest.TokenHTML500())
	r.Zoho.ExpireAccessTokens()
	wantStatus(t, r.call("demo", list("b")), 200)
	r.Zoho.RevokeRefreshToken(refresh)
	short := list("c")
	short["deadline"] = time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
	r.call("demo", short)
	everything := r.logs.text.String()
	streams := r.js.StreamNames(t.Context())
	for stream := range streams.Name() {
		everything += r.dump(stream)
	}
	if err := streams.Err(); err != nil {
		t.Fatal(err)
	}
	metrics, err := http.Get("http://" + w.HTTPAddr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(metrics.Body)
	_ = metrics.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	everything += string(text)
	secrets := append(r.Zoho.Secrets(), "test-secret", r.keys.Reveal(), strings.TrimPrefix(r.keys.Reveal(), "dev:"), r.Zoho.CookieSecret())
	for _, s := range secrets {
		if s != "" && strings.Contains(everything, s) {
			t.Errorf("a secret shows: %.12s…", s)
		}
	}
	for _, there := range []string{"request settled", "zoho.dead.demo", "zoho.queues.", "zoho.tokens.demo", "zoho_worker_requests_total"} {
		if !strings.Contains(everything, there) {
			t.Errorf("there is no %s: the search was for nothing", there)
		}
	}
}

// dump is everything a stream holds, headers included.
func (r *rig) dump(name string) string {
	r.t.Helper()
	stream, err := r.js.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	var b strings.Builder
	info := stream.CachedInfo().State
	for seq := info.FirstSeq; seq <= info.LastSeq && info.Msgs > 0; seq++ {
		if msg, err := stream.GetMsg(r.t.Context(), seq); err == nil {
			fmt.Fprintln(&b, msg.Subject, msg.Header, string(msg.Data))
		}
	}
	return b.String()
}

// A connection whose refreshes Zoho throttles for long leaves the org's places
// to the others; its requests are answered at their deadlines, or go on by
// themselves when it gets a token again.
func TestThrottledConnectionTakesNoPlaces(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{TokenLife: 10 * time.Second, MaxMints: 1000})
	refresh := r.demo(5)
	r.connect("other", devbox.OrgID, 5)
	r.worker()
	r.worker()
	grant := r.Zoho.GrantID(refresh)
	r.Zoho.Inject(zohotest.TokenThrottle().If(func(c zohotest.Call) bool { return c.Grant == grant }).Repeat(-1))
	const n = 30
	for i := range n {
		r.publish("demo", insert(fmt.Sprint("wait-", i), fmt.Sprint("Wait", i)))
	}
	for i := range n {
		wantStatus(t, r.call("other", list(fmt.Sprint("other-", i))), 200)
	}
	short := list("short")
	short["deadline"] = time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", short), envelope.DeadlineExceeded)
	if got := r.executed(); got["Wait0"] != 0 {
		t.Fatalf("executed %v without a token", got)
	}
	// A new grant is not the throttled one.
	fresh := r.Zoho.GrantRefreshToken("user-of-demo")
	if _, err := r.store.Reauthorize(t.Context(), "demo", secret.New(fresh), nil); err != nil {
		t.Fatal(err)
	}
	for id, response := range r.awaitAll("demo", n) {
		if response.Status != 201 || response.Error != nil {
			t.Fatalf("%s is %s", id, response.AppendJSON(nil))
		}
	}
}
