package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho/zohotest"
)

// brief makes lost requests come to their end soon.
func brief(c *app.Config) { c.CallTimeout = 2 * time.Second }

// lead is one record with a field to look it up by.
func lead(ref string) doc { return doc{"Last_Name": ref, "External_Ref": ref} }

func leads(prefix string, n int) (records []doc, refs []string) {
	for i := range n {
		refs = append(refs, fmt.Sprintf("%s-%03d", prefix, i))
		records = append(records, lead(refs[i]))
	}
	return records, refs
}

func probed(id string, probe doc, records ...doc) doc {
	return doc{"id": id, "method": "POST", "url": "/v8/Leads", "headers": doc{"X-Test": id}, "body": doc{"data": records}, "probe": probe}
}

// results are the elements of an answer to a write.
type results []struct {
	Code    string
	Details struct{ ID string }
	Status  string
}

func resultsOf(t testing.TB, response *envelope.Response) results {
	t.Helper()
	var body struct{ Data results }
	if err := json.Unmarshal(response.Body.Data, &body); err != nil {
		t.Fatalf("%v in %s", err, response.AppendJSON(nil))
	}
	return body.Data
}

// ids are the records of a module by External_Ref; more than one of a kind fails.
func (r *rig) ids() map[string]string {
	r.t.Helper()
	all := map[string]string{}
	for _, record := range r.Zoho.Records(devbox.OrgID, "Leads") {
		if ref, ok := record["External_Ref"].(string); ok {
			if all[ref] != "" {
				r.t.Errorf("%s is there twice", ref)
			}
			all[ref] = fmt.Sprint(record["id"])
		}
	}
	return all
}

// wantWhole holds that the answer names the record of each ref, in their order.
func (r *rig) wantWhole(response *envelope.Response, refs ...string) {
	r.t.Helper()
	if response.Error != nil || response.Records == nil || response.Records.Succeeded != len(refs) || response.Records.Failed != 0 {
		r.t.Fatalf("response is %s", response.AppendJSON(nil))
	}
	there, got := r.ids(), resultsOf(r.t, response)
	if len(got) != len(refs) {
		r.t.Fatalf("%d results of %d records", len(got), len(refs))
	}
	for i, ref := range refs {
		if there[ref] == "" || got[i].Details.ID != there[ref] || got[i].Code != "SUCCESS" {
			r.t.Errorf("result %d is %+v, the record %s has the id %q", i, got[i], ref, there[ref])
		}
	}
}

// about matches the inserts of a request, which has its id in a header: a fault
// is chosen before a body is read.
func about(id string) zohotest.Match {
	return zohotest.Match{Method: "POST", Path: "/crm/v8/Leads", Where: func(c zohotest.Call) bool { return c.Header.Get("X-Test") == id }}
}

func strikes(f zohotest.Fault, id string) zohotest.Fault {
	f.Match = about(id)
	return f
}

// Whatever becomes of an insert's answer, a probed one is found or sent again:
// exactly one record, and an answer that names it.
func TestProbe(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(25)
	r.worker(brief)
	r.worker(brief)
	probes := map[string]func(ref string) doc{
		"field": func(string) doc { return doc{"field": "External_Ref"} },
		"coql":  func(ref string) doc { return doc{"coql": "External_Ref = '" + ref + "'"} },
		"url": func(ref string) doc {
			return doc{"url": "/v8/Leads/" + ref + "?fields=External_Ref", "headers": doc{"X-EXTERNAL": "Leads.External_Ref"}}
		},
	}
	fates := map[string]struct {
		fault   zohotest.Fault
		applied bool
	}{
		"applied-reset":  {zohotest.CutApplied(zohotest.Reset), true},
		"applied-closed": {zohotest.CutApplied(zohotest.Close), true},
		"applied-500":    {zohotest.InternalError().Applied(), true},
		"applied-html":   {zohotest.HTMLError(502).Applied(), true},
		"cut-body":       {zohotest.Truncated(10), true},
		"reset":          {zohotest.CutRead(zohotest.Reset), false},
		"503":            {zohotest.Maintenance(), false},
		// Zoho carries it out after the worker has given up. Were "not there"
		// believed at once, there would be two.
		"late": {zohotest.DelayBefore(2500 * time.Millisecond), true},
	}
	type asked struct {
		ref     string
		applied bool
	}
	var all []asked
	for kind, probe := range probes {
		for fate, c := range fates {
			ref := kind + "-" + fate
			r.Zoho.Inject(strikes(c.fault, ref))
			r.publish("demo", probed(ref, probe(ref), lead(ref)))
			all = append(all, asked{ref, c.applied})
		}
	}
	answers := r.awaitAll("demo", len(all))
	for _, q := range all {
		response := answers[q.ref]
		sent := r.Zoho.Count(about(q.ref))
		found := response.Status == 200 && response.Outcome == envelope.Confirmed
		told := response.Status == 201 && response.Outcome == ""
		// On a slow machine what is late may be in time, and what was sent again late.
		ok := sent == 1 && (found || told && strings.HasSuffix(q.ref, "-late"))
		if !q.applied {
			ok = sent == 2 && (told || found)
		}
		if !ok {
			t.Errorf("%s: sent %d times, %s", q.ref, sent, response.AppendJSON(nil))
		}
		r.wantWhole(response, q.ref)
	}
	if n := r.Zoho.FaultsLeft(); n != 0 {
		t.Errorf("%d faults never struck", n)
	}
}

// Of a hundred records some were written when the answer was lost: those are
// found, the others sent again, and one answer has them all in order.
func TestProbeOfManyRecords(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	refuse := zohotest.RefuseRecords(func(fields map[string]any) string {
		if ref := fmt.Sprint(fields["External_Ref"]); strings.HasSuffix(ref, "7") {
			return "RECORD_LOCKED"
		}
		return ""
	})
	refuse.Execute, refuse.Cut = true, zohotest.Reset
	r.Zoho.Inject(refuse.On("POST", "/crm/v8/Leads"))
	// Refused at the door, the second sending gives its claim back: not as if
	// nothing had ever been sent.
	r.Zoho.Inject(zohotest.TooManyRequests(zohotest.Concurrency).On("POST", "/crm/v8/Leads"))
	records, refs := leads("m", 100)
	response := r.call("demo", probed("many", doc{"field": "External_Ref"}, records...))
	r.wantWhole(response, refs...)
	if response.Outcome != envelope.Confirmed || response.Status != 201 || response.Attempts < 1 {
		t.Errorf("response is %s", response.AppendJSON(nil))
	}
	posts := r.Zoho.Find(zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"})
	if len(posts) != 3 {
		t.Fatalf("the simulator saw %d inserts", len(posts))
	}
	for _, again := range posts[1:] {
		if n := bytes.Count(again.Body, []byte("External_Ref")); n != 10 || bytes.Contains(again.Body, []byte(`m-000`)) {
			t.Errorf("a second sending has %d records: %s", n, again.Body)
		}
	}
	for _, q := range r.Zoho.Find(zohotest.Match{Method: "POST", Path: "/crm/v8/coql"}) {
		if n := bytes.Count(q.Body, []byte("'")) / 2; n > 50 || q.Status >= 300 {
			t.Errorf("a query with %d values was answered %d", n, q.Status)
		}
	}
	if response.Credits == nil || response.Credits.Used < 1+2 {
		t.Errorf("credits are %+v", response.Credits)
	}
}

// What a probe can't tell is unknown, and stays so: nobody sends it later.
func TestProbeThatCannotTell(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	r.worker(brief)
	coql := zohotest.Match{Method: "POST", Path: "/crm/v8/coql"}
	for name, prepare := range map[string]func(ref string){
		"several": func(ref string) { r.Zoho.Seed(devbox.OrgID, "Leads", lead(ref), lead(ref)) },
		"alike":   func(ref string) { r.Zoho.Seed(devbox.OrgID, "Leads", lead(strings.ToUpper(ref))) },
		"refused": func(string) { r.Zoho.Inject(zohotest.ScopeMismatch().On("POST", "/crm/v8/coql")) },
	} {
		ref := "untold-" + name
		prepare(ref)
		r.Zoho.Inject(strikes(zohotest.CutRead(zohotest.Reset), ref))
		q := probed(ref, doc{"field": "External_Ref"}, lead(ref))
		wantCode(t, r.call("demo", q), envelope.OutcomeUnknown, "look")
		wantCode(t, r.call("demo", q), envelope.OutcomeUnknown, "look")
		if n := r.Zoho.Count(about(ref)); n != 1 {
			t.Errorf("%s: sent %d times", name, n)
		}
	}
	// One of two: the other is sent again, and the answer says which is which.
	r.Zoho.Seed(devbox.OrgID, "Leads", lead("half-000"), lead("half-000"))
	r.Zoho.Inject(strikes(zohotest.CutRead(zohotest.Reset), "half"))
	records, _ := leads("half", 2)
	response := r.call("demo", probed("half", doc{"field": "External_Ref"}, records...))
	wantCode(t, response, envelope.OutcomeUnknown, "1 of 2")
	if got := resultsOf(t, response); got[0].Code != "OUTCOME_UNKNOWN" || got[1].Code != "SUCCESS" || response.Status != 207 {
		t.Errorf("response is %s", response.AppendJSON(nil))
	}
	// The deadline comes before it can be told that the record isn't there.
	r.Zoho.Inject(strikes(zohotest.CutRead(zohotest.Reset), "short"))
	q := probed("short", doc{"field": "External_Ref"}, lead("short"))
	q["deadline"] = time.Now().Add(1500 * time.Millisecond).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", q), envelope.OutcomeUnknown, "deadline")
	if n := r.Zoho.Count(about("short")); n != 1 {
		t.Errorf("short: sent %d times", n)
	}
	if r.Zoho.Count(coql) == 0 {
		t.Error("nothing was looked up")
	}
}

// Zoho fails again and again, between and at the lookups: the insert is done once.
func TestProbeThroughManyFaults(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	refresh := r.demo(10)
	r.worker(brief)
	r.worker(brief)
	faults := []zohotest.Fault{zohotest.CutRead(zohotest.Reset), zohotest.InternalError(), zohotest.TooManyRequests(zohotest.Concurrency), zohotest.CutApplied(zohotest.Reset)}
	for _, f := range faults {
		r.Zoho.Inject(f.On("POST", "/crm/v8/Leads"))
	}
	for _, f := range []zohotest.Fault{zohotest.TooManyRequests(zohotest.Concurrency), zohotest.CutRead(zohotest.Reset), zohotest.Maintenance(), zohotest.InvalidToken()} {
		r.Zoho.Inject(f.On("POST", "/crm/v8/coql"))
	}
	_ = refresh
	// Two copies, as from a publisher that isn't sure: two workers settle the same.
	q := probed("often", doc{"field": "External_Ref"}, lead("often-1"), lead("often-2"))
	r.publish("demo", q)
	r.publish("demo", q)
	r.wantWhole(r.await("demo", "often"), "often-1", "often-2")
	r.drained()
	if n := r.Zoho.FaultsLeft(); n != 0 {
		t.Errorf("%d faults never struck", n)
	}
	if n := r.Zoho.Count(about("often")); n != len(faults) {
		t.Errorf("sent %d times, want %d", n, len(faults))
	}
}

// Records that failed for a passing reason are sent again, those alone; the
// answer is one, in the request's order.
func TestRetryFailedRecords(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	records, refs := leads("again", 30)
	records[3]["Email"] = "no address" // its own fault
	var mu sync.Mutex
	refusals := map[string]int{}
	r.Zoho.Inject(strikes(zohotest.RefuseRecords(func(fields map[string]any) string {
		mu.Lock()
		defer mu.Unlock()
		ref := fmt.Sprint(fields["External_Ref"])
		refusals[ref]++
		switch {
		case strings.HasSuffix(ref, "5") && refusals[ref] <= 2:
			return "RECORD_LOCKED"
		case strings.HasSuffix(ref, "6") && refusals[ref] <= 1:
			return "DEPENDENT_SERVICE_ERROR"
		}
		return ""
	}), "again").Repeat(-1))
	q := doc{"id": "again", "method": "POST", "url": "/v8/Leads", "headers": doc{"X-Test": "again"}, "body": doc{"data": records, "trigger": []string{}}, "retry_failed_records": true}
	response := r.call("demo", q)
	there, got := r.ids(), resultsOf(t, response)
	if response.Status != 207 || response.Error != nil || len(got) != 30 || response.Records.Succeeded != 29 || response.Records.Codes["INVALID_DATA"] != 1 || len(response.Records.Codes) != 1 {
		t.Fatalf("response is %s", response.AppendJSON(nil))
	}
	for i, ref := range refs {
		if i == 3 && got[i].Code != "INVALID_DATA" || i != 3 && (there[ref] == "" || got[i].Details.ID != there[ref]) {
			t.Errorf("result %d is %+v, the record %s has the id %q", i, got[i], ref, there[ref])
		}
	}
	var sizes []int
	for _, call := range r.Zoho.Find(about("again")) {
		sizes = append(sizes, bytes.Count(call.Body, []byte("External_Ref")))
		if !bytes.Contains(call.Body, []byte(`"trigger":[]`)) {
			t.Errorf("the rest of the body is missing: %s", call.Body)
		}
	}
	if !slices.Equal(sizes, []int{30, 6, 3}) || response.Attempts != 3 {
		t.Errorf("sent %v records in %d attempts", sizes, response.Attempts)
	}
	if response.Credits == nil || response.Credits.Used != 3+1+1 {
		t.Errorf("credits are %+v", response.Credits)
	}
	// Updates by id, each failing once as a whole.
	all := map[string]any{"External_Ref": "again-000", "id": there["again-000"], "Company": "New"}
	locked := zohotest.RefuseRecords(func(map[string]any) string { return "RECORD_LOCKED" })
	r.Zoho.Inject(locked.On("PUT", "/crm/v8/Leads"))
	put := r.call("demo", doc{"id": "put", "method": "PUT", "url": "/v8/Leads", "body": doc{"data": []any{all}}, "retry_failed_records": true})
	if put.Status != 200 || put.Error != nil || put.Records.Succeeded != 1 || put.Attempts != 2 {
		t.Errorf("response is %s", put.AppendJSON(nil))
	}
	// Without the field everything is as Zoho said it.
	r.Zoho.Inject(locked.On("PUT", "/crm/v8/Leads"))
	plain := r.call("demo", doc{"id": "plain", "method": "PUT", "url": "/v8/Leads", "body": doc{"data": []any{all}}})
	if plain.Status != 400 || plain.Records.Codes["RECORD_LOCKED"] != 1 || plain.Attempts != 1 {
		t.Errorf("response is %s", plain.AppendJSON(nil))
	}
}

// What becomes of the second sending: the records of the first are told in any case.
func TestRetryFailedRecordsInTrouble(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	lockLast := func(text string, times int) {
		r.Zoho.Inject(strikes(zohotest.RefuseRecords(func(fields map[string]any) string {
			if strings.HasSuffix(fmt.Sprint(fields["External_Ref"]), "002") {
				return "RECORD_LOCKED"
			}
			return ""
		}), text).Repeat(times))
	}
	ask := func(id string, more doc) *envelope.Response {
		records, _ := leads(id, 3)
		q := doc{"id": id, "method": "POST", "url": "/v8/Leads", "headers": doc{"X-Test": id}, "body": doc{"data": records}, "retry_failed_records": true}
		for k, v := range more {
			q[k] = v
		}
		return r.call("demo", q)
	}
	// It is lost: that record is unknown, and so is the request's outcome.
	lockLast("lost", 1)
	r.Zoho.Inject(strikes(zohotest.CutApplied(zohotest.Reset), "lost"))
	response := ask("lost", nil)
	wantCode(t, response, envelope.OutcomeUnknown, "no answer came")
	if got := resultsOf(t, response); response.Status != 207 || response.Records.Succeeded != 2 || got[1].Details.ID != r.ids()["lost-001"] || got[2].Code != "OUTCOME_UNKNOWN" {
		t.Errorf("response is %s", response.AppendJSON(nil))
	}
	// With a probe it is found.
	lockLast("found", 1)
	r.Zoho.Inject(strikes(zohotest.CutApplied(zohotest.Reset), "found"))
	r.wantWhole(ask("found", doc{"probe": doc{"field": "External_Ref"}}), "found-000", "found-001", "found-002")
	// It is refused by a limit and by a token: those pass.
	lockLast("limit", 1)
	r.Zoho.Inject(strikes(zohotest.TooManyRequests(zohotest.Concurrency), "limit"))
	r.Zoho.Inject(strikes(zohotest.InvalidToken(), "limit"))
	response = ask("limit", nil)
	r.wantWhole(response, "limit-000", "limit-001", "limit-002")
	if response.Attempts != 3 {
		t.Errorf("%d attempts: a 429 is none", response.Attempts)
	}
	// The deadline ends it: Zoho's last word counts.
	lockLast("late", -1)
	response = ask("late", doc{"deadline": time.Now().Add(3 * time.Second).UTC().Format(time.RFC3339Nano)})
	if got := resultsOf(t, response); response.Error != nil || response.Status != 207 || got[0].Code != "SUCCESS" || got[2].Code != "RECORD_LOCKED" || response.Records.Succeeded != 2 {
		t.Errorf("response is %s", response.AppendJSON(nil))
	}
	// The call is refused as a whole: so is each of its records.
	lockLast("whole", 1)
	r.Zoho.Inject(strikes(zohotest.NoPermission(), "whole"))
	response = ask("whole", nil)
	if got := resultsOf(t, response); response.Error != nil || response.Status != 207 || got[0].Code != "SUCCESS" || got[2].Code != "NO_PERMISSION" {
		t.Errorf("response is %s", response.AppendJSON(nil))
	}
	r.ids()
}

// A stopping worker tells what it knows: nobody else could.
func TestRetryFailedRecordsAtStop(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	w := r.worker()
	r.Zoho.Inject(strikes(zohotest.RefuseRecords(func(fields map[string]any) string {
		if fields["External_Ref"] == "stop-001" {
			return "RECORD_LOCKED"
		}
		return ""
	}), "stop").Repeat(-1))
	records, _ := leads("stop", 2)
	r.publish("demo", doc{"id": "stop", "method": "POST", "url": "/v8/Leads", "headers": doc{"X-Test": "stop"}, "body": doc{"data": records}, "retry_failed_records": true})
	if err := r.Zoho.Await(t.Context(), 2, about("stop")); err != nil {
		t.Fatal(err)
	}
	stop(w)
	response := r.await("demo", "stop")
	if response.Error != nil || response.Records.Succeeded != 1 || response.Records.Codes["RECORD_LOCKED"] != 1 {
		t.Errorf("response is %s", response.AppendJSON(nil))
	}
	r.worker()
	r.drained()
	r.ids()
}
