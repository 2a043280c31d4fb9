package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/register"
	"zoho-worker/internal/zoho/zohotest"
)

// limited adds an org with these limits and the connection demo to it.
func (r *rig) limited(l zohotest.Limits) {
	r.t.Helper()
	r.demo(l.Concurrency)
	r.Zoho.SetLimits(devbox.OrgID, l)
}

func coql(id string) doc {
	return doc{"id": id, "method": "POST", "url": "/v8/coql", "body": doc{"select_query": "select id from Leads where Last_Name = 'Seed' limit 1"}}
}

// judged fails where Zoho refused a call for a limit.
func (r *rig) judged(places, heavy int) {
	r.t.Helper()
	c := r.Zoho.Counts(devbox.OrgID)
	if c.Refused.Sum() != 0 || c.HighestInFlight > places || c.HighestHeavy > heavy {
		r.t.Errorf("%d calls were in flight, %d of them heavy; refused: %+v", c.HighestInFlight, c.HighestHeavy, c.Refused)
	}
}

// A composite counts for five calls in flight, and the heavy ones within it for heavy ones
// besides. Many of them beside many others: Zoho has to refuse none, and neither waits for
// all of the other.
func TestComposites(t *testing.T) {
	t.Parallel()
	light := doc{"sub_request_id": "1", "method": "GET", "uri": "/crm/v8/Leads", "params": doc{"fields": "Last_Name"}}
	sorted := doc{"sub_request_id": "2", "method": "GET", "uri": "/crm/v8/Leads", "params": doc{"fields": "Last_Name", "sort_by": "id"}}
	query := doc{"sub_request_id": "3", "method": "POST", "uri": "/crm/v8/coql", "body": coql("")["body"]}
	for places, within := range map[int][]doc{12: {light}, 25: {light, sorted, query}} {
		t.Run(fmt.Sprint(len(within)), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, zohotest.Options{})
			r.limited(zohotest.Limits{Concurrency: places, SubConcurrency: 10})
			r.Zoho.SetLatency(50 * time.Millisecond)
			const each = 60
			for i := range each {
				r.publish("demo", doc{
					"id": fmt.Sprint("composite-", i), "method": "POST", "url": "/v8/__composite_requests", "body": doc{"__composite_requests": within},
				})
				for n := range 5 {
					r.publish("demo", list(fmt.Sprint("list-", i, "-", n)))
				}
			}
			r.worker()
			var order []string
			for id, got := range r.awaitEach("demo", 6*each, func(got *envelope.Response) { order = append(order, got.ID) }) {
				if got.Status/100 != 2 || got.Attempts != 1 {
					t.Errorf("%s: %s", id, got.AppendJSON(nil))
				}
			}
			r.judged(places, 10)
			half := 0
			for _, id := range order[:len(order)/2] {
				if strings.HasPrefix(id, "composite") {
					half++
				}
			}
			if half < each/4 || half > each*3/4 {
				t.Errorf("%d of %d composites are in the first half", half, each)
			}
		})
	}
}

// Heavy operations keep their own limit, across workers, and light ones behind a
// long row of them don't wait for it.
func TestHeavyRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 20, SubConcurrency: 10})
	r.Zoho.SetLatency(200 * time.Millisecond) // slow, so that the test sees the order on a slow machine
	const heavy, light = 200, 40
	for i := range heavy {
		r.publish("demo", coql(fmt.Sprint("heavy-", i)))
	}
	for i := range light {
		r.publish("demo", list(fmt.Sprint("light-", i)))
	}
	for range 3 {
		r.worker()
	}
	done, left := 0, 0 // heavy ones answered, and left when the last light one was
	answered := r.awaitEach("demo", heavy+light, func(response *envelope.Response) {
		if strings.HasPrefix(response.ID, "light-") {
			left = heavy - done
		} else {
			done++
		}
	})
	for id, response := range answered {
		if response.Status != 200 || response.Error != nil {
			t.Fatalf("%s is %s", id, response.AppendJSON(nil))
		}
	}
	if left < heavy/4 {
		t.Errorf("%d heavy requests were left when the last light one was answered", left)
	}
	r.judged(20, 10)
}

// A heavy request that is moved to a lane of its own is not mistaken for what another
// caller has published under the id that it is moved by, nor kept where it is by what
// its own caller expected of the stream, or by as many headers as a message may have.
func TestMovedRequests(t *testing.T) {
	t.Parallel()
	const heavy = 100
	crowded := nats.Header{"X": {""}}
	crowded.Set("X", strings.Repeat("x", register.MaxHeader-register.HeaderSize(crowded)))
	for name, c := range map[string]struct {
		expected bool
		header   nats.Header
	}{"under another's id": {}, "with an expectation": {expected: true}, "with all headers there may be": {header: crowded}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, zohotest.Options{})
			r.limited(zohotest.Limits{Concurrency: 20, SubConcurrency: 10})
			for i := range heavy {
				other := []byte(`{"id":"other","method":"GET","url":"/v8/Leads?fields=Last_Name"}`)
				if _, err := r.js.Publish(t.Context(), "zoho.requests.other", other, jetstream.WithMsgID(fmt.Sprint("aside.", heavy+1+i))); err != nil {
					t.Fatal(err)
				}
			}
			last := uint64(0)
			for i := range heavy {
				data, err := json.Marshal(coql(fmt.Sprint("heavy-", i)))
				if err != nil {
					t.Fatal(err)
				}
				var options []jetstream.PublishOpt
				if c.expected {
					options = append(options, jetstream.WithExpectLastSequencePerSubject(last))
				}
				ack, err := r.js.PublishMsg(t.Context(), &nats.Msg{Subject: "zoho.requests.demo", Data: data, Header: maps.Clone(c.header)}, options...)
				if err != nil {
					t.Fatal(err)
				}
				last = ack.Sequence
			}
			w := r.worker()
			for _, response := range r.awaitAll("demo", heavy) {
				wantStatus(t, response, 200)
			}
			r.drained()
			if moved := scrape(t, w.HTTPAddr)["zoho_worker_heavy_moved_total"].GetMetric()[0].GetCounter().GetValue(); moved < heavy/4 {
				t.Errorf("%v were moved", moved)
			}
		})
	}
}

// Whatever an operation costs by Zoho's price list, the requester is told so, Zoho
// charges it, and the org's ledger has it (zoho-facts 3.2).
func TestWeights(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 20, SubConcurrency: 10, Credits: 1_000_000})
	r.worker()
	rows := func(n int) []doc {
		all := make([]doc, n)
		for i := range all {
			all[i] = doc{"Last_Name": fmt.Sprint("W", i)}
		}
		return all
	}
	query := func(limit string) doc {
		return doc{"select_query": "select id from Leads where Last_Name = 'Seed'" + limit}
	}
	ids := func(n int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprint(100+i))
		}
		return all
	}
	total := 0
	for i, row := range []struct {
		method, url string
		body        any
		credits     int
	}{
		{"GET", "/v8/Leads?fields=Last_Name", nil, 1},
		{"GET", "/v8/Leads?fields=Last_Name&sort_by=id", nil, 1},
		{"GET", "/v8/Leads?fields=Last_Name&cvid=7", nil, 3},
		{"GET", "/v8/Leads/deleted", nil, 2},
		{"GET", "/v8/Leads/actions/count", nil, 50},
		{"POST", "/v8/Leads", doc{"data": rows(10)}, 1},
		{"POST", "/v8/Leads", doc{"data": rows(11)}, 2},
		{"POST", "/v8/Leads/upsert", doc{"data": rows(100), "duplicate_check_fields": []string{"Last_Name"}}, 10},
		{"PUT", "/v8/Leads", doc{"data": rows(21)}, 3},
		{"POST", "/v8/Leads/1/actions/add_tags", doc{"tags": []doc{{"name": "a"}}}, 1},
		{"POST", "/v8/Leads/actions/add_tags", doc{"tags": []doc{{"name": "a"}}, "ids": ids(51)}, 2},
		{"POST", "/v8/Leads/actions/remove_tags?ids=" + strings.Join(ids(500), ","), nil, 10},
		{"POST", "/v8/Leads/actions/mass_delete", doc{"ids": ids(101)}, 2},
		{"POST", "/v8/Leads/1/actions/convert", doc{}, 5},
		{"POST", "/v8/Leads/actions/mass_convert", doc{}, 200},
		{"POST", "/v8/Leads/1/actions/send_mail", doc{}, 20},
		{"POST", "/v8/Leads/1/actions/merge", doc{}, 50},
		{"POST", "/bulk/v8/read", doc{"query": doc{"module": "Leads"}}, 50},
		{"POST", "/bulk/v8/write", doc{}, 500},
		{"POST", "/v8/settings/modules", doc{}, 500},
		{"POST", "/v8/coql", query(" limit 200"), 1},
		{"POST", "/v8/coql", query(" limit 201"), 2},
		{"POST", "/v8/coql", query(" limit 2000"), 3},
		{"POST", "/v8/__composite_requests", doc{"__composite_requests": []doc{}}, 1},
	} {
		d := doc{"id": fmt.Sprint("w-", i), "method": row.method, "url": row.url}
		if row.body != nil {
			d["body"] = row.body
		}
		got := r.call("demo", d)
		if got.Status == 0 || got.Attempts != 1 || got.Credits == nil || got.Credits.Used != row.credits {
			t.Errorf("%s %.60s: want %d credits, response is %.300s", row.method, row.url, row.credits, got.AppendJSON(nil))
		}
		total += row.credits
		if charged := r.Zoho.Counts(devbox.OrgID).CreditsCharged; charged != total {
			t.Fatalf("%s %.60s: Zoho has charged %d in all, want %d", row.method, row.url, charged, total)
		}
	}
	r.seen(fmt.Sprintf("the org's count is %d credits", total), func(s consumer.Sight) bool { return s.State.Forecast(time.Now()).Used == total })
}

// Interactive requests go before bulk ones, which have a place all the same.
func TestLanes(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 5, SubConcurrency: 10})
	r.Zoho.SetLatency(20 * time.Millisecond)
	const n = 150
	for i := range n {
		r.publish("demo.bulk", list(fmt.Sprint("bulk-", i)))
	}
	for i := range n {
		r.publish("demo", list(fmt.Sprint("now-", i)))
	}
	r.worker()
	r.worker()
	bulk, last := 0, 0 // bulk answers before the last interactive one
	r.awaitEach("demo", 2*n, func(response *envelope.Response) {
		if response.Status != 200 {
			t.Errorf("%s is %s", response.ID, response.AppendJSON(nil))
		}
		if strings.HasPrefix(response.ID, "bulk-") {
			bulk++
		} else {
			last = bulk
		}
	})
	// One place of five is theirs: a quarter of the four others'.
	if last < n/10 || last > n*2/3 {
		t.Errorf("%d of %d bulk requests were answered before the last interactive one", last, n)
	}
	r.judged(5, 0)
}

// inTurn is an insert that says to the simulator which one of its row it is.
func inTurn(key string, i int) doc {
	d := insert(fmt.Sprint(key, "-", i), fmt.Sprint(key, "-", i))
	d["query"] = doc{"at": fmt.Sprint(key, "-", i)}
	return d
}

func turnOf(c zohotest.Call) (string, int64) {
	query, _ := url.ParseQuery(c.RawQuery)
	key, place, ok := strings.Cut(query.Get("at"), "-")
	n, err := strconv.ParseInt(place, 10, 64)
	if !ok || err != nil {
		return "", 0
	}
	return key, n
}

// A worker that stops between two attempts gives the request back, and starts
// nothing that has to come after it.
func TestOrderWhenStopping(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.demo(5)
	r.Zoho.Inject(zohotest.AnswerWith("busy", 503, "", "Retry-After", "20").On("GET", ""))
	first := r.worker()
	for i := range 4 {
		d := list(fmt.Sprint("A-", i))
		d["query"], d["order_key"] = doc{"fields": "Last_Name", "at": d["id"]}, "A"
		r.publish("demo", d)
	}
	r.seen("the first was tried, and the others are in hand", func(s consumer.Sight) bool {
		return r.Zoho.Count(zohotest.Match{Method: "GET"}) == 1 && s.Running == 1 && s.Held == 3
	})
	stop(first)
	r.worker()
	for _, response := range r.awaitAll("demo", 4) {
		wantStatus(t, response, 200)
	}
	if o := r.Zoho.Orders()["A"]; o.Disorder != 0 || o.Overlaps != 0 || o.Calls != 5 {
		t.Errorf("%+v", o)
	}
}

// Requests with one order key are carried out one after the other in the order
// they came in, those of an ordered connection too, whatever becomes of the
// workers; different keys go side by side.
func TestOrder(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{Order: turnOf})
	r.limited(zohotest.Limits{Concurrency: 10, SubConcurrency: 10})
	r.connect("strict", devbox.OrgID, 10)
	if _, err := r.store.Update(t.Context(), "strict", func(c *connection.Connection) error {
		c.Ordered = true
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.Zoho.SetLatency(10 * time.Millisecond)
	r.Zoho.Inject(zohotest.TooManyRequests(zohotest.Concurrency).On("POST", "").After(20))
	const n = 60
	first := r.worker()
	for i := range n {
		for _, key := range []string{"A", "B", "C"} {
			d := inTurn(key, i)
			d["order_key"] = key
			r.publish("demo", d)
		}
		r.publish("strict", inTurn("S", i))
	}
	r.worker()
	eventually(t, "half of them are sent", func() bool { return r.Zoho.Count(zohotest.Match{Method: "POST"}) > 2*n })
	stop(first)
	for _, response := range r.awaitAll("demo", 3*n) {
		wantStatus(t, response, 201)
	}
	r.awaitAll("strict", n)
	orders := r.Zoho.Orders()
	for _, key := range []string{"A", "B", "C", "S"} {
		if o := orders[key]; o.Disorder != 0 || o.Overlaps != 0 || o.Calls < n {
			t.Errorf("%s: %+v", key, o)
		}
	}
	if most := r.Zoho.Counts(devbox.OrgID).HighestInFlight; most < 2 {
		t.Errorf("different keys did not go side by side: %d in flight at most", most)
	}
}

// A connection with a long backlog doesn't hold up another of the same org.
func TestFairBetweenConnections(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 4, SubConcurrency: 10})
	r.connect("small", devbox.OrgID, 4)
	r.Zoho.SetLatency(20 * time.Millisecond)
	const backlog, few = 300, 30
	for i := range backlog {
		r.publish("demo", list(fmt.Sprint("long-", i)))
	}
	for i := range few {
		r.publish("small", list(fmt.Sprint("few-", i)))
	}
	r.worker()
	r.worker()
	done, left := 0, 0 // of the long backlog
	r.awaitEach("*", backlog+few, func(response *envelope.Response) {
		if strings.HasPrefix(response.ID, "few-") {
			left = backlog - done
		} else {
			done++
		}
	})
	if left < backlog/2 {
		t.Errorf("%d of %d requests of the long backlog were left when the short one was done", left, backlog)
	}
	r.judged(4, 0)
}

// Credits: bulk work stops at the reserve, interactive work when nothing is left;
// both wait, and are answered when credits are free again. Responses say what is left.
func TestCredits(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 5, SubConcurrency: 10, Credits: 200})
	r.Zoho.SpendCredits(devbox.OrgID, 150, time.Hour)
	workers := []*app.Worker{r.worker(), r.worker()}
	got := r.call("demo", list("first"))
	wantStatus(t, got, 200)
	if got.Credits == nil || got.Credits.Used != 1 || !got.Credits.Known || got.Credits.Remaining != 49 {
		t.Fatalf("credits are %+v", got.Credits)
	}
	const n = 60
	for i := range n {
		r.publish("demo.bulk", list(fmt.Sprint("bulk-", i)))
	}
	blocked := func(want string) {
		t.Helper()
		r.seen("the org waits for "+want, func(s consumer.Sight) bool { return string(s.Blocked) == want })
		// The same in the metrics and in the log.
		orgs := 0.0
		for _, w := range workers {
			orgs += metric(t, w.HTTPAddr, "zoho_worker_orgs", "blocked="+want)
		}
		if log := r.logs.text.String(); orgs != 1 || !strings.Contains(log, "org waits for credits") || !strings.Contains(log, "for="+want) {
			t.Errorf("%v orgs are counted as waiting for %s, log:\n%s", orgs, want, r.logs.tail(20))
		}
	}
	blocked("reserve")
	// The reserve is a tenth of what is left and what we used. What has been started
	// may not have arrived at Zoho yet.
	eventually(t, "bulk requests use what they may", func() bool { return r.Zoho.CreditsUsed(devbox.OrgID) >= 190 })
	if used := r.Zoho.CreditsUsed(devbox.OrgID); used > 196 {
		t.Errorf("%d credits are used", used)
	}
	for i := range n {
		r.publish("demo", list(fmt.Sprint("now-", i)))
	}
	blocked("credits")
	eventually(t, "all credits are used", func() bool { return r.Zoho.CreditsUsed(devbox.OrgID) == 200 })
	if c := r.Zoho.Counts(devbox.OrgID); c.Refused.Sum() != 0 {
		t.Errorf("refused: %+v", c.Refused)
	}
	short := list("short")
	short["deadline"] = time.Now().Add(time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", short), envelope.DeadlineExceeded, "credits")
}

// An org whose limits fall without notice: no request fails for it, and the
// worker finds the new limit.
func TestLimitsFall(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.limited(zohotest.Limits{Concurrency: 20, SubConcurrency: 10})
	r.Zoho.SetLatency(50 * time.Millisecond)
	const n = 600
	for i := range n {
		r.publish("demo", list(fmt.Sprint("r-", i)))
	}
	r.worker()
	r.worker()
	calls := zohotest.Match{Method: "GET", Path: "/crm/v8/Leads"}
	eventually(t, "the org is busy", func() bool { return len(r.Zoho.Find(calls)) >= n/4 })
	r.Zoho.SetLimits(devbox.OrgID, zohotest.Limits{Concurrency: 6, SubConcurrency: 10})
	for id, response := range r.awaitAll("demo", n) {
		if response.Status != 200 || response.Error != nil {
			t.Fatalf("%s is %s", id, response.AppendJSON(nil))
		}
	}
	if refused := r.Zoho.Counts(devbox.OrgID).Refused.Concurrency; refused == 0 || refused > 60 {
		t.Errorf("%d calls were refused", refused)
	}
	record, err := lease.Read(t.Context(), r.js, demoQueue)
	if err != nil {
		t.Fatal(err)
	}
	if limit := consumer.DecodeState(record.State).Limit; limit == 0 || limit > 7 {
		t.Errorf("the limit found is %d", limit)
	}
}

// Orgs are shared among the workers, also with one that comes later.
func TestOrgsAreShared(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.Zoho.SetLatency(20 * time.Millisecond)
	const orgs, n = 12, 400
	for i := range orgs {
		id := fmt.Sprint(880_000 + i)
		r.Zoho.AddOrg(zohotest.Org{ID: id, Name: id, Concurrency: 5})
		r.Zoho.Seed(id, "Leads", map[string]any{"Last_Name": "Seed"})
		r.connect(fmt.Sprint("c", i), id, 5)
	}
	r.worker()
	for i := range orgs {
		for k := range n {
			r.publish(fmt.Sprint("c", i), list(fmt.Sprint("r-", k)))
		}
	}
	r.worker()
	eventually(t, "the second worker has some of the orgs", func() bool {
		owners := map[string]int{}
		for i := range orgs {
			record, err := lease.Read(t.Context(), r.js, fmt.Sprint("org-us-production-", 880_000+i))
			if err == nil {
				owners[record.Owner]++
			}
		}
		return len(owners) > 1
	})
	for i := range orgs {
		r.awaitAll(fmt.Sprint("c", i), n)
		if c := r.Zoho.Counts(fmt.Sprint(880_000 + i)); c.Refused.Sum() != 0 {
			t.Errorf("org %d: %+v", i, c.Refused)
		}
	}
}

// A lane that there is not is refused by name.
func TestNoSuchLane(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	r.worker()
	d := list("lost")
	inbox := r.nc.NewInbox()
	d["reply_to"] = inbox
	sub, err := r.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	r.publish("demo.slow", d)
	msg, err := sub.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	response, err := envelope.DecodeResponse(msg.Data)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, response, envelope.InvalidRequest, "subject: zoho.requests.demo.slow names no lane", "zoho.requests.demo.bulk")
	r.drained()
}

// seen waits until the worker that serves the demo org says of it what is wanted.
func (r *rig) seen(what string, wanted func(consumer.Sight) bool) {
	r.t.Helper()
	eventually(r.t, what, func() bool {
		msg, err := r.nc.Request("zoho.orgs", []byte(demoQueue), time.Second)
		if err != nil {
			return false // nobody serves it now
		}
		var sights []consumer.Sight
		if err := json.Unmarshal(msg.Data, &sights); err != nil || len(sights) != 1 {
			r.t.Fatalf("%s: %v", msg.Data, err)
		}
		return wanted(sights[0])
	})
}

// Many connections that were busy once don't stay a burden on the stream: what is
// settled leaves nothing that would be handed out again, the consumers of most go
// when they are idle, and each is served again when it has work.
func TestIdleConsumersGo(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	const n, kept, acked = 300, 128, 256
	name := func(i int) string { return fmt.Sprint("idle-", i) }
	for i := range n {
		org := r.Zoho.AddOrg(zohotest.Org{}).ID
		r.Zoho.Seed(org, "Leads", map[string]any{"Last_Name": "Lead"})
		r.connect(name(i), org, 5)
	}
	r.worker()
	// One consumer for all responses: one each would come to the limit to their number.
	responses, err := r.follow("zoho.responses.*.*").Messages()
	if err != nil {
		t.Fatal(err)
	}
	defer responses.Stop()
	rounds := 0
	round := func() {
		rounds++
		id := fmt.Sprint("round-", rounds)
		data, err := json.Marshal(list(id))
		if err != nil {
			t.Fatal(err)
		}
		for i := range n { // what is lost is missed below
			if _, err := r.js.PublishAsync("zoho.requests."+name(i), data); err != nil {
				t.Fatal(err)
			}
		}
		<-r.js.PublishAsyncComplete()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for i := range n {
			msg, err := responses.Next(jetstream.NextContext(ctx))
			if err != nil {
				t.Fatalf("%d of %d responses: %v", i, n, err)
			}
			response, err := envelope.DecodeResponse(msg.Data())
			if err != nil || response.ID != id {
				t.Fatalf("%s, want %s: %v", msg.Data(), id, err)
			}
			wantStatus(t, response, 200)
		}
	}
	consumers := func() (n int) {
		eventually(t, "the server says how many consumers there are", func() bool {
			stream, err := r.js.Stream(t.Context(), consumer.RequestStream)
			if err == nil {
				n = stream.CachedInfo().State.Consumers
			}
			return err == nil
		})
		return n
	}
	// Where a round takes longer than a lane lasts without a request, as the first
	// one may, the next is faster.
	for round(); consumers() <= acked; round() {
		if rounds == 5 {
			t.Fatalf("%d consumers: they are gone before it is known what they leave", consumers())
		}
	}
	round() // there are so many consumers now that nothing is acked
	eventually(t, "nothing is in hand", func() bool {
		stream, err := r.js.Stream(t.Context(), consumer.RequestStream)
		if err != nil {
			return false
		}
		held, list := 0, stream.ListConsumers(t.Context())
		for info := range list.Info() {
			held += info.NumAckPending
		}
		return held == 0 && list.Err() == nil
	})
	eventually(t, "most consumers are gone", func() bool { return consumers() <= kept })
	round()
	if got := len(r.Zoho.Find(zohotest.Match{Method: "GET", Path: "/crm/v8/Leads"})); got != rounds*n {
		t.Errorf("%d calls for %d requests", got, rounds*n)
	}
	eventually(t, "all is off the stream", func() bool { return r.backlog() == 0 })
}
