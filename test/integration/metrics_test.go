package integration

import (
	"fmt"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"zoho-worker/internal/app"
	"zoho-worker/internal/zoho/zohotest"
)

// scrape returns what a worker serves at /metrics.
func scrape(t testing.TB, addr string) map[string]*dto.MetricFamily {
	t.Helper()
	resp, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// metric returns the sum of a metric's values that have these labels, k=v; of a
// histogram how many observations it has.
func metric(t testing.TB, addr, name string, labels ...string) float64 {
	t.Helper()
	family := scrape(t, addr)[name]
	if family == nil {
		t.Fatalf("no metric %s", name)
	}
	var sum float64
	for _, m := range family.Metric {
		have := map[string]bool{}
		for _, l := range m.Label {
			have[l.GetName()+"="+l.GetValue()] = true
		}
		if slices.ContainsFunc(labels, func(l string) bool { return !have[l] }) {
			continue
		}
		sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum
}

// revoke revokes a connection, the only one that is, and waits until the worker knows.
func (r *rig) revoke(w *app.Worker, name, reason string) {
	r.t.Helper()
	r.markRevoked(name, reason)
	eventually(r.t, "the worker knows that "+name+" is revoked", func() bool {
		return metric(r.t, w.HTTPAddr, "zoho_worker_connections", "status=revoked") == 1
	})
}

func series(families map[string]*dto.MetricFamily) (n int) {
	for name, family := range families {
		if strings.HasPrefix(name, "zoho_worker_") {
			n += len(family.Metric)
		}
	}
	return n
}

var metricRow = regexp.MustCompile("(?m)^\\| `(zoho_worker_[a-z_0-9]+)` \\| (\\w+) \\|([^|]*)\\|")

// docs/metrics.md lists every metric there is, with its type and labels, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	w := r.worker()
	wantStatus(t, r.call("demo", insert("one", "One")), 201)
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range metricRow.FindAllStringSubmatch(string(page), -1) {
		documented[row[1]] = row[2] + " " + strings.ReplaceAll(row[3], " ", "")
	}
	for name, family := range scrape(t, w.HTTPAddr) {
		if !strings.HasPrefix(name, "zoho_worker_") {
			if !regexp.MustCompile(`^(go|process|promhttp)_`).MatchString(name) {
				t.Errorf("%s is served and of no known family", name)
			}
			continue
		}
		var labels []string
		for _, m := range family.Metric {
			labels = labels[:0]
			for _, l := range m.Label {
				labels = append(labels, l.GetName())
			}
		}
		slices.Sort(labels)
		want, ok := documented[name]
		if !ok {
			t.Errorf("%s is served and not in docs/metrics.md", name)
			continue
		}
		kind, listed, _ := strings.Cut(want, " ")
		names := strings.FieldsFunc(listed, func(r rune) bool { return r == ',' })
		slices.Sort(names)
		if got := strings.ToLower(family.GetType().String()); got != kind || !slices.Equal(labels, names) {
			t.Errorf("%s is a %s with %v, docs/metrics.md says %s with %v", name, got, labels, kind, names)
		}
		if family.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
		delete(documented, name)
	}
	for name := range documented {
		t.Errorf("docs/metrics.md lists %s, which is not served", name)
	}
	// Histograms are native ones too, for who asks for protobuf.
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+w.HTTPAddr+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Accept", string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	resp, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	decoder := expfmt.NewDecoder(resp.Body, expfmt.ResponseFormat(resp.Header))
	native := 0
	for {
		var family dto.MetricFamily
		if err := decoder.Decode(&family); err != nil {
			break
		}
		if family.GetType() == dto.MetricType_HISTOGRAM && strings.HasPrefix(family.GetName(), "zoho_worker_") {
			for _, m := range family.Metric {
				if m.GetHistogram().Schema == nil || len(m.GetHistogram().Bucket) == 0 {
					t.Errorf("%s is not both a classic and a native histogram", family.GetName())
				}
			}
			native++
		}
	}
	if native < 5 {
		t.Errorf("%d native histograms", native)
	}
}

// However many connections there are and whatever they send, there are no more series.
func TestMetricsAreBounded(t *testing.T) {
	t.Parallel()
	const connections = 3_000 // three times the consumers that a stream has where nobody asks for more
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	w := r.worker()
	methods := []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
	send := func(name string, i int) {
		d := doc{"id": fmt.Sprintf("x%d", i), "method": methods[i%len(methods)], "url": fmt.Sprintf("/v%d/M%d/%d/actions/a%d", 1+i%9, i, i, i)}
		if d["method"] != "GET" && d["method"] != "DELETE" {
			d["body"] = doc{"n": i}
		}
		if i%7 == 0 {
			d["unknown"] = i // refused
		}
		r.publish(name, d)
	}
	for i := range 200 {
		send("demo", i)
	}
	r.drained()
	before := series(scrape(t, w.HTTPAddr))
	// One in 250 is a connection that there is, of an org of its own.
	name := func(i int) string {
		if i%250 == 0 {
			return fmt.Sprintf("known-%d", i)
		}
		return fmt.Sprintf("stranger-%d", i)
	}
	for i := 0; i < connections; i += 250 {
		id := fmt.Sprint(550_000_000 + i)
		r.Zoho.AddOrg(zohotest.Org{ID: id, Name: id, Concurrency: 5})
		r.connect(name(i), id, 5)
	}
	begun := time.Now()
	for i := range connections {
		send(name(i), i)
	}
	stream, err := r.js.Stream(t.Context(), "ZOHO_REQUESTS")
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		info, err := stream.Info(t.Context())
		if err == nil && info.State.Msgs == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d requests are left", info.State.Msgs)
		}
	}
	after := series(scrape(t, w.HTTPAddr))
	t.Logf("%d connections in %s: %d series before, %d after", connections, time.Since(begun).Round(time.Second), before, after)
	if after > before || after > 1500 {
		t.Fatalf("%d series before, %d after", before, after)
	}
	if got := metric(t, w.HTTPAddr, "zoho_worker_requests_total"); got < float64(connections) {
		t.Fatalf("%v requests counted", got)
	}
}

// An alert on a counter sees nothing of a series that begins with its first event: so
// all that a worker counts of requests begins at zero.
func TestRequestsAreCountedFromZero(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	w := r.worker()
	values := func() map[string]float64 {
		values := map[string]float64{}
		for _, m := range scrape(t, w.HTTPAddr)["zoho_worker_requests_total"].Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			values[strings.Join(labels, " ")] = m.GetCounter().GetValue()
		}
		return values
	}
	before := values()
	for _, id := range []string{"one", "two"} {
		r.publish("demo", insert(id, "One"))
		wantStatus(t, r.await("demo", id), 201)
	}
	r.publish("demo", insert("one", "One"))   // repeated
	r.publish("demo", insert("one", "Other")) // dead: nobody can be told of the conflict
	r.publishRaw("demo", []byte("no request"))
	r.publish("stranger", list("one"))
	late := list("late")
	late["deadline"] = "2020-01-01T00:00:00Z"
	r.publish("demo", late)
	r.drained()
	counted := 0
	for labels, value := range values() {
		if _, begun := before[labels]; !begun {
			t.Errorf("the series %s begins at %v", labels, value)
		}
		counted += int(value)
	}
	if counted != 7 {
		t.Errorf("%d requests are counted, of 7", counted)
	}
	for _, code := range []string{"invalid_request", "id_conflict", "internal"} {
		if _, begun := before["class=none code="+code+" method=none outcome=dead"]; !begun {
			t.Errorf("dead letters with the code %s are not counted from zero", code)
		}
	}
}

// What is runnable is what only a place of a worker is missing for: it leaves out
// orgs at their limit, paused ones and revoked connections. Another worker starts
// it, though an org is served by one at a time.
func TestRunnableBacklog(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	org := func(name, id string, places int) {
		r.Zoho.AddOrg(zohotest.Org{ID: id, Name: name, Concurrency: places})
		r.connect(name, id, places)
	}
	org("one", "660", 3)
	org("two", "770", 3)
	org("paused", "880", 5)
	org("revoked", "990", 5)
	r.markRevoked("revoked", "test")
	r.Zoho.Inject(zohotest.AnswerWith("limit", 429, "", "Retry-After", "60").On("GET", "/crm/v8/Accounts").Repeat(-1))
	for i := range 20 {
		r.publish("paused", doc{"id": fmt.Sprintf("p%d", i), "method": "GET", "url": "/v8/Accounts", "query": doc{"fields": "Account_Name"}})
		r.publish("revoked", list(fmt.Sprintf("r%d", i)))
	}
	// No call is given up while it is held.
	places := func(n int) func(*app.Config) {
		return func(c *app.Config) { c.MaxInFlight, c.CallTimeout, c.StopTimeout = n, 2*patience, 3*patience }
	}
	w := r.worker(places(4))
	eventually(t, "the paused org and the revoked connection are seen", func() bool {
		return metric(t, w.HTTPAddr, "zoho_worker_queues", "state=paused") == 1 && metric(t, w.HTTPAddr, "zoho_worker_queues", "state=parked") == 1 &&
			metric(t, w.HTTPAddr, "zoho_worker_waiting_requests", "for=authorization") == 20 &&
			metric(t, w.HTTPAddr, "zoho_worker_waiting_requests", "for=pause") >= 15
	})
	if got := metric(t, w.HTTPAddr, "zoho_worker_runnable_backlog"); got != 0 {
		t.Fatalf("runnable backlog is %v, and no worker could start anything", got)
	}
	if got := metric(t, w.HTTPAddr, "zoho_worker_backlog"); got != 40 {
		t.Fatalf("backlog is %v", got)
	}
	if got := metric(t, w.HTTPAddr, "zoho_worker_pause_longest_seconds"); got <= 0 {
		t.Fatalf("longest pause is %v", got)
	}

	// Two orgs of three places each, and a worker with four.
	const n = 80
	posts := zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"}
	hold := r.Zoho.Hold(zohotest.BodyRead, posts)
	for i := range n {
		r.publish("one", insert(fmt.Sprintf("i%d", i), fmt.Sprint("One", i)))
		r.publish("two", insert(fmt.Sprintf("i%d", i), fmt.Sprint("Two", i)))
	}
	for i := range 4 {
		select {
		case <-hold.Reached():
		case <-time.After(patience):
			t.Fatalf("%d of 4 calls are under way", i)
		}
	}
	eventually(t, "two more could be started, and the rest waits for its org's other calls", func() bool {
		return metric(t, w.HTTPAddr, "zoho_worker_runnable_backlog") == 2 && metric(t, w.HTTPAddr, "zoho_worker_waiting_requests", "for=place") >= 2*n-8
	})
	r.Zoho.SetLatency(500 * time.Millisecond)
	hold.Release()
	other := r.worker(places(8))
	eventually(t, "the other has the place that was missing, and nothing more could be started", func() bool {
		return metric(t, other.HTTPAddr, "zoho_worker_in_flight") == 3 && metric(t, w.HTTPAddr, "zoho_worker_in_flight") == 3 &&
			metric(t, w.HTTPAddr, "zoho_worker_runnable_backlog") == 0 && metric(t, other.HTTPAddr, "zoho_worker_runnable_backlog") == 0 &&
			metric(t, other.HTTPAddr, "zoho_worker_waiting_requests", "for=place") > 0
	})
	r.Zoho.SetLatency(0)
	for _, name := range []string{"one", "two"} {
		r.awaitAll(name, n)
	}
	if seen := r.Zoho.Count(posts); seen != 2*n {
		t.Errorf("the simulator saw %d POSTs for %d requests", seen, 2*n)
	}
}
