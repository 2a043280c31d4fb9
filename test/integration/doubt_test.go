package integration

import (
	"bytes"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/lease"
	"zoho-worker/internal/zoho/zohotest"
)

// unique is an insert that may be repeated.
func unique(id string) doc {
	return doc{
		"id": id, "method": "POST", "url": "/v8/Leads", "unique_field": "External_Id",
		"deadline": time.Now().Add(5 * time.Second).UTC().Format(time.RFC3339Nano),
		"body":     doc{"data": []doc{{"Last_Name": id, "External_Id": id}}},
	}
}

// An insert that may be repeated is carried out and its answer lost. Whatever then
// keeps it from its second sending until its deadline, its answer doesn't say that
// it was never sent: who believes that sends it with a new id, a second record.
func TestDoubtOutlivesAWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.Zoho.SetUnique(devbox.OrgID, "Leads", "External_Id")
	r.worker(brief)
	const path = "/crm/v8/Leads"

	r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("POST", path))
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.Concurrency, 30*time.Second).On("POST", path))
	paused := r.call("demo", unique("paused"))
	wantCode(t, paused, envelope.DeadlineExceeded, "may have been carried out")
	if paused.Attempts != 1 || r.executed()["paused"] != 1 { // a 429 uses up none
		t.Errorf("%d records, and the answer is %s", r.executed()["paused"], paused.AppendJSON(nil))
	}

	other := newRig(t, zohotest.Options{})
	refresh := other.demo(10)
	other.Zoho.SetUnique(devbox.OrgID, "Leads", "External_Id")
	other.worker(brief)
	wantStatus(t, other.call("demo", list("warm")), 200)
	other.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("POST", path))
	other.Zoho.OnCall(zohotest.Executed, zohotest.Match{Method: "POST", Path: path}, func(zohotest.Call) { other.Zoho.RevokeRefreshToken(refresh) })
	wantCode(t, other.call("demo", unique("revoked")), envelope.ReauthorizationRequired, "is not known")
	if n := other.executed()["revoked"]; n != 1 {
		t.Errorf("%d records", n)
	}
}

// An update that is sent again modified the record itself, and a deletion deleted
// it: neither is told that somebody else was there before and nothing was done.
func TestDoubtOfConditions(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64 // of Zoho's clock
	r := newRig(t, zohotest.Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.demo(10)
	r.worker(brief)
	ids := r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Before"}, map[string]any{"Last_Name": "Gone"}, map[string]any{"Last_Name": "Several"})
	path := "/crm/v8/Leads/" + ids[0]
	since := time.Now().Add(time.Second)
	ahead.Store(int64(5 * time.Second)) // the condition counts in seconds
	conditional := func(id string) doc {
		return doc{
			"id": id, "method": "PUT", "url": "/v8/Leads/" + ids[0], "headers": doc{"If-Unmodified-Since": since.UTC().Format(time.RFC3339)},
			"body": doc{"data": []doc{{"Last_Name": "After"}}},
		}
	}
	r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("PUT", path))
	wantCode(t, r.call("demo", conditional("put")), envelope.OutcomeUnknown, "modified since")
	if n := r.executed()["After"]; n != 1 {
		t.Errorf("%d records were updated", n)
	}
	wantStatus(t, r.call("demo", conditional("late")), 412) // without a doubt it is Zoho's own answer
	many := conditional("many")
	many["url"], many["body"] = "/v8/Leads", doc{"data": []doc{{"id": ids[2], "Last_Name": "Many"}, {"id": "1", "Last_Name": "Nobody"}}}
	many["headers"] = doc{"If-Unmodified-Since": time.Now().Add(6 * time.Second).UTC().Format(time.RFC3339)}
	ahead.Add(int64(5 * time.Second))
	r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("PUT", "/crm/v8/Leads"))
	wantCode(t, r.call("demo", many), envelope.OutcomeUnknown, "modified since")
	if n := r.executed()["Many"]; n != 1 {
		t.Errorf("%d records were updated", n)
	}

	path = "/crm/v8/Leads/" + ids[1]
	r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("DELETE", path))
	deleted := r.call("demo", doc{"id": "delete", "method": "DELETE", "url": "/v8/Leads/" + ids[1]})
	wantStatus(t, deleted, 200)
	if deleted.Outcome != envelope.Confirmed || !strings.Contains(string(deleted.Body.Data), ids[1]) || deleted.Attempts != 2 {
		t.Errorf("deleted: %s", deleted.AppendJSON(nil))
	}
	if again := r.call("demo", doc{"id": "again", "method": "DELETE", "url": "/v8/Leads/" + ids[1]}); again.Status != 400 || again.Outcome != "" {
		t.Errorf("again: %s", again.AppendJSON(nil))
	}
	// A note or a tag is deleted in other words, and a record that an external field
	// names has an id that nobody knows.
	for id, d := range map[string]doc{
		"note":     {"url": "/v8/Leads/" + ids[0] + "/Notes/7"},
		"external": {"url": "/v8/Leads/gone%40example.com", "headers": doc{"X-EXTERNAL": "Leads.Email"}},
	} {
		d["id"], d["method"] = id, "DELETE"
		r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("DELETE", ""))
		wantCode(t, r.call("demo", d), envelope.OutcomeUnknown, "may have deleted it")
	}
}

// Nor is it told so by another worker than the one that sent it first and got no answer.
func TestDoubtOfConditionsElsewhere(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64 // of Zoho's clock
	r := newRig(t, zohotest.Options{Now: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	r.demo(10)
	ids := r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Before"}, map[string]any{"Last_Name": "Gone"})
	first := r.worker(brief)
	since := time.Now().Add(time.Second)
	ahead.Store(int64(5 * time.Second)) // the condition counts in seconds
	put, gone := "/crm/v8/Leads/"+ids[0], "/crm/v8/Leads/"+ids[1]
	hold := r.Zoho.Hold(zohotest.Executed, zohotest.Match{Where: func(c zohotest.Call) bool { return c.Path == put || c.Path == gone }})
	r.publish("demo", doc{
		"id": "put", "method": "PUT", "url": "/v8/Leads/" + ids[0], "headers": doc{"If-Unmodified-Since": since.UTC().Format(time.RFC3339)},
		"body": doc{"data": []doc{{"Last_Name": "After"}}},
	})
	r.publish("demo", doc{"id": "delete", "method": "DELETE", "url": "/v8/Leads/" + ids[1]})
	r.reached(hold)
	r.reached(hold)
	stop(first) // its calls end without an answer, and the requests go to the next
	hold.Release()
	r.worker(brief)
	wantCode(t, r.await("demo", "put"), envelope.OutcomeUnknown, "another worker")
	wantCode(t, r.await("demo", "delete"), envelope.OutcomeUnknown, "another worker")
	if n := r.executed()["After"]; n != 1 {
		t.Errorf("%d records were updated", n)
	}
}

// Nor where the worker that sent it died: the next one has it from a consumer that is
// made anew, and which counts its deliveries from one. Nor where NATS died with it, as
// on the same machine, and has forgotten the consumer.
func TestDoubtAfterACrash(t *testing.T) {
	t.Parallel()
	t.Run("of the worker", func(t *testing.T) {
		t.Parallel()
		doubtAfterACrash(t, func(*rig) error { return nil })
	})
	t.Run("of NATS, too", func(t *testing.T) {
		t.Parallel()
		doubtAfterACrash(t, (*rig).RestartNATS)
	})
}

func doubtAfterACrash(t *testing.T, also func(*rig) error) {
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.Zoho.SetUnique(devbox.OrgID, "Leads", "External_Id")
	ids := r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Gone"})
	first := r.process()
	gone := "/crm/v8/Leads/" + ids[0]
	hold := r.Zoho.Hold(zohotest.Executed, zohotest.Match{Where: func(c zohotest.Call) bool { return c.Path == gone || c.Method == "POST" }})
	late := unique("late") // its deadline is over when the dead worker's session is
	r.publish("demo", doc{"id": "delete", "method": "DELETE", "url": "/v8/Leads/" + ids[0]})
	r.publish("demo", late)
	r.reached(hold)
	r.reached(hold)
	first.signal(syscall.SIGKILL)
	first.died()
	if err := also(r); err != nil {
		t.Fatal(err)
	}
	hold.Release()
	r.worker(brief)
	wantCode(t, r.await("demo", "delete"), envelope.OutcomeUnknown, "another worker")
	wantCode(t, r.await("demo", "late"), envelope.DeadlineExceeded, "is not known")
	if n := r.executed()["late"]; n != 1 {
		t.Errorf("%d records", n)
	}
}

// Nor where the worker lost its session while the request rested, and gave it back.
func TestDoubtAfterALostSession(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	ids := r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Gone"})
	path := "/crm/v8/Leads/" + ids[0]
	r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("DELETE", path))
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.Concurrency, 10*time.Second).On("DELETE", path))
	r.publish("demo", doc{"id": "delete", "method": "DELETE", "url": "/v8/Leads/" + ids[0]})
	r.seen("the org is paused", func(s consumer.Sight) bool { return s.State.Pause != nil })
	r.anew(lease.WorkerStream)
	response := r.await("demo", "delete")
	wantCode(t, response, envelope.OutcomeUnknown, "another worker")
}

// A connection is removed while a call of it is under way: what Zoho answered is
// delivered, and where nobody knows what became of a call, that is said.
func TestDoubtAfterARemoval(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	ids := r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Before"})
	first := r.worker()
	update := func(id string) {
		r.publish("demo", doc{"id": id, "method": "PUT", "url": "/v8/Leads/" + ids[0], "body": doc{"data": []doc{{"Last_Name": "After"}}}})
	}
	hold := r.Zoho.Hold(zohotest.Executed, zohotest.Match{Method: "PUT"})
	update("under-way")
	r.reached(hold)
	if err := r.store.Remove(t.Context(), "demo", ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection is unknown, of which all requests are answered in order", func() bool {
		got := r.call("demo", list(r.id("removed")))
		return got.Error != nil && got.Error.Code == envelope.UnknownConnection
	})
	hold.Release()
	wantStatus(t, r.await("demo", "under-way"), 200)
	stop(first)

	r.connect("demo", devbox.OrgID, 10)
	second := r.worker(brief)
	hold = r.Zoho.Hold(zohotest.Executed, zohotest.Match{Method: "PUT"})
	update("cut")
	r.reached(hold)
	stop(second) // its call ends without an answer
	hold.Release()
	if err := r.store.Remove(t.Context(), "demo", ""); err != nil {
		t.Fatal(err)
	}
	r.worker(brief)
	wantCode(t, r.await("demo", "cut"), envelope.UnknownConnection, "is not known")
}

// A GET that runs the customer's code is sent once, like an insert. Asked again
// under its id it is answered as it was.
func TestFunctionByGet(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	const path = "/crm/v8/functions/f/actions/execute"
	q := doc{"id": "fn", "method": "GET", "url": "/v8/functions/f/actions/execute"}
	wantStatus(t, r.call("demo", q), 200)
	wantStatus(t, r.call("demo", q), 200)
	if n := r.Zoho.Count(zohotest.Match{Path: path}); n != 1 {
		t.Errorf("carried out %d times", n)
	}
}

// A function is the customer's own code and sets the status of its answer: that
// says nothing of whether it was carried out, and is no limit of the org's.
func TestFunctionChoosesItsStatus(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	const path = "/crm/v8/functions/charge/actions/execute"
	for i, status := range []int{429, 401} {
		r.Zoho.Inject(zohotest.AnswerWith("own status", status, `{"charged":"yes","stock":"low"}`).On("POST", path).Applied())
		wantStatus(t, r.call("demo", doc{"id": fmt.Sprint("charge-", status), "method": "POST", "url": "/v8/functions/charge/actions/execute", "body": doc{}}), status)
		if n := r.Zoho.Count(zohotest.Match{Path: path}); n != i+1 {
			t.Errorf("%d: carried out %d times", status, n-i)
		}
	}
	r.Zoho.Inject(zohotest.TooManyRequestsRetry(zohotest.Concurrency, time.Second).On("POST", path))
	wantStatus(t, r.call("demo", doc{"id": "limit", "method": "POST", "url": "/v8/functions/charge/actions/execute", "body": doc{}}), 200)
}

// A gateway's page that doesn't fit into a message: that the outcome is unknown is
// still said.
func TestUnknownOutcomeWithALargePage(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	page := "<html>" + strings.Repeat(`"`, 700<<10) + "</html>"
	r.Zoho.Inject(zohotest.AnswerWith("502", 502, page, "Content-Type", "text/html").On("POST", "/crm/v8/Leads").Applied())
	wantCode(t, r.call("demo", insert("page", "page")), envelope.OutcomeUnknown)
}

// The answer to a probed insert is lost, then the grant is revoked, then the
// deadline passes: nobody can look it up, so its outcome is unknown.
func TestProbeWithoutToken(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	refresh := r.demo(10)
	r.worker(brief)
	wantStatus(t, r.call("demo", list("warm")), 200)
	r.Zoho.Inject(strikes(zohotest.CutApplied(zohotest.Reset), "gone"))
	r.Zoho.OnCall(zohotest.Arrived, zohotest.Match{Method: "POST", Path: "/crm/v8/coql"}, func(zohotest.Call) { r.Zoho.RevokeRefreshToken(refresh) })
	r.Zoho.Inject(zohotest.Maintenance().On("POST", "/crm/v8/coql"))
	q := probed("gone", doc{"field": "External_Ref"}, lead("gone"))
	q["deadline"] = time.Now().Add(8 * time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, r.call("demo", q), envelope.OutcomeUnknown)
}

// A field that Zoho keeps as a decimal: COQL finds the record and spells its value
// 17.0. It is there, so the insert isn't sent again.
func TestProbeFindsItSpelledOtherwise(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	r.Zoho.Inject(strikes(zohotest.CutApplied(zohotest.Reset), "decimal"))
	r.Zoho.Inject(zohotest.Fault{Name: "decimal", Times: -1, Edit: func(a *zohotest.Answer) {
		a.Body = bytes.ReplaceAll(a.Body, []byte(`"External_Ref":17`), []byte(`"External_Ref":17.0`))
	}}.On("POST", "/crm/v8/coql"))
	wantCode(t, r.call("demo", probed("decimal", doc{"field": "External_Ref"}, doc{"Last_Name": "decimal", "External_Ref": 17})), envelope.OutcomeUnknown)
	if n := r.executed()["decimal"]; n != 1 {
		t.Errorf("inserted %d times", n)
	}
}

// An update that adds a row to a subform adds it each time that it is sent: lost, it is
// not sent again. With the ids of its rows it is.
func TestRowsAreNotAddedTwice(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	id := r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Rows", "Email": "rows@example.com", "Items": []any{map[string]any{"id": "7", "Price": 1}}})[0]
	items := func() []any {
		for _, record := range r.Zoho.Records(devbox.OrgID, "Leads") {
			if record["id"] == id {
				list, _ := record["Items"].([]any)
				return list
			}
		}
		return nil
	}
	lost := func() { r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset)) }
	row := []doc{{"Last_Name": "Rows", "Email": "rows@example.com", "Items": []doc{{"Price": 2}}}}

	lost()
	wantCode(t, r.call("demo", doc{"id": "row", "method": "PUT", "url": "/v8/Leads/" + id, "body": doc{"data": row}}), envelope.OutcomeUnknown)
	if n := len(items()); n != 2 {
		t.Errorf("%d rows after one row was added", n)
	}
	lost()
	wantCode(t, r.call("demo", doc{"id": "upsert", "method": "POST", "url": "/v8/Leads/upsert", "body": doc{"data": row, "duplicate_check_fields": []string{"Email"}}}), envelope.OutcomeUnknown)
	if n := len(items()); n != 3 {
		t.Errorf("%d rows after another row was added", n)
	}
	lost()
	known := r.call("demo", doc{"id": "known", "method": "PUT", "url": "/v8/Leads/" + id, "body": doc{"data": []doc{{"Items": []doc{{"id": "7", "Price": 3}}}}}})
	wantStatus(t, known, 200)
	if n := len(items()); n != 3 || known.Attempts != 2 {
		t.Errorf("%d rows after one was changed, in %d attempts", n, known.Attempts)
	}
}

// An insert whose answer was lost is there. However Zoho then refuses its second
// sending, nobody is told that it isn't.
func TestDoubtOfAnInsert(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	for _, f := range []string{"External_Id", "Email"} {
		r.Zoho.SetUnique(devbox.OrgID, "Leads", f)
	}
	const path = "/crm/v8/Leads"
	other := `{"data":[{"code":"DUPLICATE_DATA","details":{"api_name":"Email","id":"1"},"message":"duplicate data","status":"error"}]}`
	for id, c := range map[string]struct {
		then zohotest.Fault
		code envelope.Code // "": confirmed
	}{
		"both":      {zohotest.Fault{}, ""},
		"other":     {zohotest.AnswerWith("other field", 400, other), envelope.OutcomeUnknown},
		"forbidden": {zohotest.NoPermission(), envelope.OutcomeUnknown},
		"scope":     {zohotest.ScopeMismatch(), envelope.OutcomeUnknown},
		"token":     {zohotest.InvalidToken().Repeat(2), envelope.OutcomeUnknown},
		"service":   {zohotest.AnswerWith("service", 400, `{"data":[{"code":"DEPENDENT_SERVICE_ERROR","details":{},"message":"x","status":"error"}]}`), envelope.OutcomeUnknown},
	} {
		r.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("POST", path))
		if c.code != "" {
			r.Zoho.Inject(c.then.On("POST", path))
		}
		q := unique(id)
		q["deadline"] = time.Now().Add(patience).UTC().Format(time.RFC3339Nano)
		q["body"] = doc{"data": []doc{{"Last_Name": id, "External_Id": id, "Email": id + "@example.com"}}}
		got := r.call("demo", q)
		if n := r.executed()[id]; n != 1 {
			t.Errorf("%s: %d records", id, n)
		}
		if c.code != "" {
			wantCode(t, got, c.code, "earlier sending")
			continue
		}
		wantStatus(t, got, 200)
		if got.Outcome != envelope.Confirmed || got.Attempts != 2 {
			t.Errorf("%s: %s", id, got.AppendJSON(nil))
		}
	}
}

// A page with status 200, as a proxy sends, is no answer to a write: what became of it
// is not known, unless it can be looked up or sent again.
func TestPageInPlaceOfAnAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker(brief)
	r.Zoho.SetUnique(devbox.OrgID, "Leads", "External_Id")
	page := func(status int) {
		r.Zoho.Inject(zohotest.AnswerWith("page", status, "<html><body>one moment</body></html>", "Content-Type", "text/html").Applied())
	}
	for _, status := range []int{200, 524} {
		id := fmt.Sprint("page-", status)
		page(status)
		wantCode(t, r.call("demo", insert(id, id)), envelope.OutcomeUnknown, fmt.Sprint(status))
		page(status)
		r.wantWhole(r.call("demo", probed(id+"-probed", doc{"field": "External_Ref"}, lead(id+"-ref"))), id+"-ref")
		page(status)
		kept := r.call("demo", unique(id+"-unique"))
		wantStatus(t, kept, 200)
		if kept.Outcome != envelope.Confirmed {
			t.Errorf("%s", kept.AppendJSON(nil))
		}
	}
	for name, n := range r.executed() {
		if n > 1 {
			t.Errorf("%s: %d records", name, n)
		}
	}
}
