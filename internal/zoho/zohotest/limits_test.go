package zohotest

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// Every weight of zoho-facts 3.2 and every heavy operation of 3.3.
func TestWeights(t *testing.T) {
	t.Parallel()
	records := func(n int) string {
		return `{"data":[` + strings.TrimSuffix(strings.Repeat(`{"Last_Name":"x"},`, n), ",") + `]}`
	}
	ids := func(n int) string {
		return strings.TrimSuffix(strings.Repeat("1,", n), ",")
	}
	coql := func(limit string) string { return `{"select_query":"select id from Leads` + limit + `"}` }
	for _, c := range []struct {
		method, target, body string
		credits              int
		heavy                bool
	}{
		{"GET", "/crm/v8/Leads?fields=id", "", 1, false},
		{"GET", "/crm/v8/Leads?fields=sort_by", "", 1, false},
		{"GET", "/crm/v8/Leads?fields=id&sort_by=id", "", 1, true},
		{"GET", "/crm/v8/Leads?fields=id&cvid=7", "", 3, true},
		{"GET", "/crm/v8/Leads?cvid=7&sort_by=id", "", 3, true},
		{"GET", "/crm/v2.1/Leads/1", "", 1, false},
		{"GET", "/crm/v8/Leads/search?word=x&sort_by=id", "", 1, false},
		{"GET", "/crm/v8/Leads/deleted", "", 2, false},
		{"GET", "/crm/v8/Leads/actions/count", "", 50, false},
		{"POST", "/crm/v8/Leads/actions/count", "{}", 50, false},
		{"GET", "/crm/v8/Leads/1/Notes?sort_by=id", "", 1, false},
		{"POST", "/crm/v8/Leads", records(1), 1, false},
		{"POST", "/crm/v8/Leads", records(10), 1, false},
		{"POST", "/crm/v8/Leads", records(11), 2, true},
		{"POST", "/crm/v8/Leads", records(100), 10, true},
		{"POST", "/crm/v8/Leads", "not json", 1, false},
		{"POST", "/crm/v8/Leads/upsert", records(21), 3, true},
		{"PUT", "/crm/v8/Leads", records(20), 2, true},
		{"PATCH", "/crm/v8/Leads", records(20), 2, true},
		{"PUT", "/crm/v8/Leads/1", records(1), 1, false},
		{"DELETE", "/crm/v8/Leads?ids=" + ids(100), "", 1, false},
		{"DELETE", "/crm/v8/Leads/1", "", 1, false},
		{"POST", "/crm/v8/Leads/actions/mass_delete", `{"ids":[` + ids(100) + `]}`, 1, false},
		{"POST", "/crm/v8/Leads/actions/mass_delete", `{"ids":[` + ids(101) + `]}`, 2, false},
		{"POST", "/crm/v8/Leads/1/actions/add_tags", `{"tags":[{"name":"a"}]}`, 1, false},
		{"POST", "/crm/v8/Leads/actions/add_tags", `{"tags":[{"name":"a"}],"ids":[` + ids(51) + `]}`, 2, false},
		{"POST", "/crm/v8/Leads/actions/remove_tags?ids=" + ids(500), "", 10, false},
		{"POST", "/crm/v8/Leads/1/actions/convert", "{}", 5, true},
		{"POST", "/crm/v8/Leads/actions/mass_convert", "{}", 200, false},
		{"POST", "/crm/v8/Leads/1/actions/send_mail", "{}", 20, true},
		{"POST", "/crm/v8/Leads/1/actions/merge", "{}", 50, false},
		{"POST", "/crm/v8/Leads/1/actions/download_mail_merge", "{}", 5, false},
		{"PUT", "/crm/v8/Invoices/1/actions/send_mail", "{}", 20, true},
		{"POST", "/crm/v8/__composite_requests", `{"rollback_on_fail":true}`, 2, true},
		{"POST", "/crm/v8/coql", coql(""), 1, true},
		{"POST", "/crm/v8/coql", coql(" limit 200"), 1, true},
		{"POST", "/crm/v8/coql", coql(" limit 201"), 2, true},
		{"POST", "/crm/v8/coql", coql(" limit 5, 1000"), 2, true},
		{"POST", "/crm/v8/coql", coql(" limit 1001 offset 7"), 3, true},
		{"POST", "/crm/v8/coql", coql(" limit 2000"), 3, true},
		{"POST", "/crm/v8/coql", "nonsense", 1, true},
		{"POST", "/crm/v8/__composite_requests", `{"__composite_requests":[{"sub_request_id":"1","method":"GET","uri":"/crm/v8/Leads/actions/count"}]}`, 1, true},
		{"POST", "/crm/bulk/v8/read", `{"query":{"module":"Leads"}}`, 50, false},
		{"POST", "/crm/bulk/v8/write", "{}", 500, false},
		{"GET", "/crm/bulk/v8/read/1", "", 1, false},
		{"POST", "/crm/v8/settings/modules", "{}", 500, false},
		{"GET", "/crm/v8/settings/modules", "", 1, false},
		{"POST", "/crm/v8/functions/f/actions/execute", "{}", 1, false},
		{"GET", "/crm/v8/users?type=CurrentUser", "", 1, false},
		{"GET", "/crm/v8/nothing/of/the/kind/known", "", 1, false},
	} {
		path, query, _ := strings.Cut(c.target, "?")
		credits, heavy := weigh(c.method, path, query, []byte(c.body))
		if credits != c.credits || heavy != c.heavy {
			t.Errorf("%s %s %.40s: %d credits, heavy %t", c.method, c.target, c.body, credits, heavy)
		}
		// And the org is charged just that, once.
		b := newBox(t)
		b.call(c.method, c.target, c.body)
		if got := b.Counts(demoOrg); got.CreditsUsed != c.credits || got.CreditsCharged != c.credits || got.HighestHeavy != btoi(c.heavy) || got.Calls != 1 || got.Heavy != 0 {
			t.Errorf("%s %s %.40s: counted %+v", c.method, c.target, c.body, got)
		}
		b.http.Close()
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A heavy call holds its place for as long as it is in flight, not only while it executes.
func TestHeavyPlacesAreHeldWhileInFlight(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.Concurrency, org.SubConcurrency = 25, 10 })
	hold := b.Hold(BodyRead, Match{Path: "/crm/v8/coql"})
	var wg sync.WaitGroup
	query := `{"select_query":"select id from Leads"}`
	for range 10 {
		wg.Go(func() { b.call("POST", "/crm/v8/coql", query) })
		<-hold.Reached()
	}
	if r := b.call("GET", "/crm/v8/Leads?fields=id&cvid=1", ""); r.status != 429 || !strings.Contains(r.body, "sub-concurrency") {
		t.Error(r.status, r.body)
	}
	if r := b.call("GET", "/crm/v8/Leads?fields=id", ""); r.status != 204 {
		t.Error(r.status)
	}
	hold.Release()
	wg.Wait()
	c := b.Counts(demoOrg)
	if c.HighestHeavy != 10 || c.HighestInFlight != 11 || c.Refused != (Refused{SubConcurrency: 1}) || c.Heavy != 0 || c.CreditsUsed != 11 || c.Calls != 12 {
		t.Errorf("%+v", c)
	}
}

// Each heavy call within a composite counts for itself, and the composite, too.
func TestHeavyWithinComposite(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.Concurrency, org.SubConcurrency = 25, 7 })
	const composite = `{"__composite_requests":[
		{"sub_request_id":"1","method":"POST","uri":"/crm/v8/coql","body":{"select_query":"select id from Leads"}},
		{"sub_request_id":"2","method":"GET","uri":"/crm/v8/Leads","params":{"fields":"id","sort_by":"id"}},
		{"sub_request_id":"3","method":"GET","uri":"/crm/v8/Leads?fields=id&cvid=1"},
		{"sub_request_id":"4","method":"GET","uri":"/crm/v8/Leads?fields=id"}]}`
	hold := b.Hold(BodyRead, Match{Method: "POST", Path: "/crm/v8/__composite_requests"})
	var wg sync.WaitGroup
	wg.Go(func() {
		if r := b.call("POST", "/crm/v8/__composite_requests", composite); r.status/100 != 2 {
			t.Error(r.status, r.body)
		}
	})
	<-hold.Reached()
	if c := b.Counts(demoOrg); c.Heavy != 4 || c.InFlight != 1 {
		t.Errorf("%+v", c)
	}
	wg.Go(func() {
		if r := b.call("POST", "/crm/v8/__composite_requests", composite); r.status != 429 || !strings.Contains(r.body, "sub-concurrency") {
			t.Error(r.status, r.body)
		}
	})
	<-hold.Reached()
	hold.Release()
	wg.Wait()
	if c := b.Counts(demoOrg); c.Heavy != 0 || c.HighestHeavy != 4 {
		t.Errorf("%+v", c)
	}
}

// A composite counts for five calls in flight, unless it is alone.
func TestCompositeTakesFivePlaces(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.Concurrency = 6 })
	const composite = `{"__composite_requests":[{"sub_request_id":"1","method":"GET","uri":"/crm/v8/org"}]}`
	hold := b.Hold(BodyRead, Match{Method: "POST", Path: "/crm/v8/__composite_requests"})
	var wg sync.WaitGroup
	wg.Go(func() {
		if r := b.call("POST", "/crm/v8/__composite_requests", composite); r.status != 200 {
			t.Error(r.status, r.body)
		}
	})
	<-hold.Reached()
	if r := b.call("GET", "/crm/v8/org", ""); r.status != 200 {
		t.Error(r.status, r.body)
	}
	wg.Go(func() {
		if r := b.call("POST", "/crm/v8/__composite_requests", composite); r.status != 429 {
			t.Error(r.status, r.body)
		}
	})
	<-hold.Reached()
	hold.Release()
	wg.Wait()
	b.SetLimits(demoOrg, Limits{Concurrency: 3})
	if r := b.call("POST", "/crm/v8/__composite_requests", composite); r.status != 200 {
		t.Error(r.status, r.body)
	}
	if c := b.Counts(demoOrg); c.Refused != (Refused{Concurrency: 1}) || c.HighestInFlight != 2 {
		t.Errorf("%+v", c)
	}
}

// Places used are the integral of the calls in flight that weren't refused.
func TestBusyIntegral(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.Concurrency = 2 })
	hold := b.Hold(BodyRead, Match{Path: "/crm/v8/coql"})
	var wg sync.WaitGroup
	start := func() {
		wg.Go(func() { b.call("POST", "/crm/v8/coql", `{"select_query":"select id from Leads"}`) })
		<-hold.Reached()
	}
	start()
	b.clock.pass(3 * time.Second) // 3
	start()
	b.clock.pass(5 * time.Second) // 10, and nothing for a refused one
	if r := b.call("GET", "/crm/v8/org", ""); r.status != 429 {
		t.Error(r.status)
	}
	b.clock.pass(time.Second) // 2
	if c := b.Counts(demoOrg); c.Busy != 15*time.Second || c.HeavyBusy != 15*time.Second || c.InFlight != 2 || c.Refused != (Refused{Concurrency: 1}) {
		t.Errorf("%+v", c)
	}
	hold.Release()
	wg.Wait()
	b.clock.pass(time.Hour)
	if c := b.Counts(demoOrg); c.Busy != 15*time.Second || !c.Last.Equal(c.At.Add(-time.Hour-time.Second)) {
		t.Errorf("%+v", c)
	}
}

// Limits change without notice: those in flight go on, the next one is refused.
func TestLimitsChange(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.Concurrency = 3 })
	hold := b.Hold(BodyRead, Match{Where: func(c Call) bool { return c.RawQuery == "held" }})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if r := b.call("GET", "/crm/v8/org?held", ""); r.status != 200 {
				t.Error(r.status)
			}
		})
		<-hold.Reached()
	}
	b.SetLimits(demoOrg, Limits{Concurrency: 1, Credits: 5})
	if r := b.call("GET", "/crm/v8/org", ""); r.status != 429 {
		t.Error(r.status)
	}
	hold.Release()
	wg.Wait()
	if r := b.call("GET", "/crm/v8/org", ""); r.status != 200 || r.header.Get("X-API-CREDITS-REMAINING") != "2" {
		t.Error(r.status, r.header)
	}
	if got := b.Counts(demoOrg).Limits; got != (Limits{Concurrency: 1, Credits: 5}) {
		t.Error(got)
	}
}

// Credits that somebody else has used come back a whole 24 hours after, never sooner.
func TestCreditsComeBack(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(o *Options, org *Org) { org.Credits, o.TokenLife = 100, 48*time.Hour })
	b.clock.pass(700 * time.Millisecond)
	b.SpendCredits(demoOrg, 60, 24*time.Hour-20*time.Second)
	b.SpendCredits(demoOrg, 40, time.Hour)
	want := func(status, used int) {
		t.Helper()
		if r := b.call("GET", "/crm/v8/org", ""); r.status != status || b.CreditsUsed(demoOrg) != used {
			t.Errorf("%d, %d used", r.status, b.CreditsUsed(demoOrg))
		}
	}
	want(429, 100)
	b.clock.pass(20 * time.Second)
	want(429, 100) // rounded up to whole seconds
	b.clock.pass(time.Second)
	want(200, 41)
	c := b.Counts(demoOrg)
	if c.CreditsCharged != 1 || c.Refused != (Refused{Credits: 2}) {
		t.Errorf("%+v", c)
	}
}

// Whatever the cause, a 429 can be made to say the same.
func TestThrottleMessages(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(_ *Options, org *Org) { org.Credits, org.Concurrency, org.SubConcurrency = 2, 1, 1 })
	query := `{"select_query":"select id from Leads"}`
	say := func() (said [3]string) {
		hold := b.Hold(BodyRead, Match{Where: func(c Call) bool { return c.RawQuery == "held" }})
		done := make(chan struct{})
		b.SetLimits(demoOrg, Limits{Concurrency: 1, SubConcurrency: 1})
		go func() {
			defer close(done)
			b.call("POST", "/crm/v8/coql?held", query)
		}()
		<-hold.Reached()
		said[0], _ = b.call("GET", "/crm/v8/org", "").part(t, "message").(string)
		b.SetLimits(demoOrg, Limits{SubConcurrency: 1})
		said[1], _ = b.call("POST", "/crm/v8/coql", query).part(t, "message").(string)
		b.SetLimits(demoOrg, Limits{Credits: 1})
		said[2], _ = b.call("GET", "/crm/v8/org", "").part(t, "message").(string)
		hold.Release()
		<-done
		return said
	}
	if got := say(); got != [3]string{string(Concurrency), string(SubConcurrency), string(CreditsExhausted)} {
		t.Error(got)
	}
	b.SetThrottleMessage(BareMessage)
	if got := say(); got != [3]string{BareMessage, BareMessage, BareMessage} {
		t.Error(got)
	}
	b.SetThrottleMessage("")
	if got := say(); got[2] != string(CreditsExhausted) {
		t.Error(got)
	}
	if c := b.Counts(demoOrg); c.Refused != (Refused{Concurrency: 3, SubConcurrency: 3, Credits: 3}) {
		t.Errorf("%+v", c)
	}
}

// After the eleventh download within a minute all downloads fail for a minute, of any job.
func TestDownloadsAreLimited(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	seedQueries(b)
	var targets []string
	for range 2 {
		r := b.call("POST", "/crm/bulk/v8/read", `{"query":{"module":{"api_name":"Deals"}}}`)
		id, _ := r.part(t, "data", 0, "details", "id").(string)
		targets = append(targets, "/crm/bulk/v8/read/"+id+"/result")
	}
	get := func(i, want int) {
		t.Helper()
		if r := b.call("GET", targets[i%2], ""); r.status != want {
			t.Errorf("download %d: %d", i, r.status)
		}
	}
	for i := range 10 {
		get(i, 200)
	}
	b.clock.pass(50 * time.Second)
	get(0, 429)
	b.clock.pass(50 * time.Second)
	get(1, 429)
	b.clock.pass(10 * time.Second)
	get(1, 200)
	if c := b.Counts(demoOrg); c.Refused != (Refused{Downloads: 2}) {
		t.Errorf("%+v", c)
	}
}

// A sequence's calls are judged by when they arrive, and whether two are in flight at once.
func TestOrders(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(o *Options, _ *Org) {
		o.CountOnly = true
		o.Order = func(c Call) (string, int64) {
			var place int64
			_, _ = fmt.Sscan(c.Header.Get("X-Place"), &place)
			return c.Header.Get("X-Order"), place
		}
	})
	for _, place := range []string{"1", "2", "2", "3"} {
		b.call("GET", "/crm/v8/org", "", "X-Order", "good", "X-Place", place)
		b.call("GET", "/crm/v8/org", "")
	}
	for _, place := range []string{"1", "3", "2", "4"} {
		b.call("GET", "/crm/v8/org", "", "X-Order", "bad", "X-Place", place)
	}
	hold := b.Hold(BodyRead, Match{Where: func(c Call) bool { return c.Header.Get("X-Place") == "1" }})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { b.call("GET", "/crm/v8/org", "", "X-Order", "double", "X-Place", "1") })
		<-hold.Reached()
	}
	hold.Release()
	wg.Wait()
	got := b.Orders()
	if len(got) != 3 || got["good"] != (Order{Calls: 4, Last: 3}) || got["bad"] != (Order{Calls: 4, Disorder: 1, Last: 4}) || got["double"] != (Order{Calls: 2, Overlaps: 1, Last: 1}) {
		t.Errorf("%+v", got)
	}
	if calls := b.Calls(); len(calls) != 0 || b.Seen() != 14 {
		t.Error(len(calls), b.Seen())
	}
}

// Calls that are refused for a limit don't wait; the others take as long as they are told to.
func TestRefusalsAreQuick(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(o *Options, org *Org) { o.Now, org.Credits = nil, 1 })
	b.SetLatencyBetween(20*time.Millisecond, 30*time.Millisecond)
	if r := b.call("GET", "/crm/v8/org", ""); r.status != 200 {
		t.Error(r.status)
	}
	// The simulator's own clock tells: the call was in flight for as long, at least.
	if c := b.Counts(demoOrg); c.Busy < 20*time.Millisecond {
		t.Error(c.Busy)
	}
	b.SetLatency(24 * time.Hour)
	b.AddOrg(Org{ID: "1"})
	b.AddUser(User{ID: "2", OrgID: "1"})
	b.SetOrgLatency("1", 0, 0)
	if r := b.call("GET", "/crm/v8/org", "", "Authorization", "Bearer "+b.AccessToken(b.GrantRefreshToken("2"))); r.status != 200 {
		t.Error(r.status)
	}
	if r := b.call("GET", "/crm/v8/org", ""); r.status != 429 {
		t.Error(r.status)
	}
}

func TestAllCounts(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.AddOrg(Org{ID: "1", Concurrency: 5})
	b.call("GET", "/crm/v8/org", "")
	all := b.AllCounts()
	if len(all) != 2 || all[0].Org != "1" || all[0].Calls != 0 || all[0].Limits.Concurrency != 5 || all[1].Org != demoOrg || all[1].Calls != 1 {
		t.Errorf("%+v", all)
	}
}

// BenchmarkCountOnly is a call of a run of millions.
func BenchmarkCountOnly(b *testing.B) {
	x := newBox(b, func(o *Options, org *Org) {
		o.CountOnly, org.Concurrency, org.SubConcurrency, org.Credits = true, 25, 10, 1<<40
	})
	x.Seed(demoOrg, "Leads", map[string]any{"Last_Name": "Burns"})
	b.ReportAllocs()
	for b.Loop() {
		r, _ := http.NewRequest("GET", "/crm/v8/Leads?fields=id&per_page=1", nil)
		r.Header.Set("Authorization", "Bearer "+x.access)
		x.ServeHTTP(&discard{http.Header{}}, r)
	}
}
