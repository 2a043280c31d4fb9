package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// Every method makes its round trip, and a JSON body arrives byte for byte.
func TestRoundTrips(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	id := r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Seed", "Company": "Before"})[0]

	got := r.call("demo", doc{"id": "get", "method": "GET", "url": "/v8/Leads/" + id})
	wantStatus(t, got, 200)
	if !bytes.Contains(got.Body.Data, []byte(`"Seed"`)) {
		t.Fatalf("body %s", got.Body.Data)
	}
	body := `{"data":[{"Last_Name":"O'Neil <&>  \u00e9 é","No":12345678901234567890,"x":1e400}]  }`
	r.publishRaw("demo", fmt.Appendf(nil, `{"id":"post","method":"POST","url":"/v8/Leads","body":%s}`, body))
	wantStatus(t, r.await("demo", "post"), 201)
	wantStatus(t, r.call("demo", doc{"id": "put", "method": "PUT", "url": "/v8/Leads/" + id, "body": doc{"data": []doc{{"Company": "After"}}}}), 200)
	wantStatus(t, r.call("demo", doc{"id": "patch", "method": "PATCH", "url": "/v8/Leads/" + id, "body": doc{"data": []doc{{"Company": "Later"}}}}), 200)
	wantStatus(t, r.call("demo", doc{"id": "delete", "method": "DELETE", "url": "/v8/Leads", "query": doc{"ids": id}}), 200)
	gone := r.call("demo", doc{"id": "gone", "method": "GET", "url": "/v8/Leads/" + id})
	if gone.Error != nil || gone.Status != 204 && gone.Status != 404 {
		t.Fatalf("a deleted record is %s", gone.AppendJSON(nil))
	}
	posts := r.Zoho.Find(zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"})
	if len(posts) != 1 || string(posts[0].Body) != body {
		t.Fatalf("the simulator saw %d POSTs, the first %q, want %q", len(posts), posts[0].Body, body)
	}
	r.drained()
}

// A response is what Zoho said: headers without cookies, 4xx delivered.
func TestAnswersAreDelivered(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	r.Zoho.SetMandatory(devbox.OrgID, "Leads", "Last_Name")
	bad := r.call("demo", doc{"id": "bad", "method": "POST", "url": "/v8/Leads", "body": doc{"data": []doc{{"Company": "x"}}}})
	wantStatus(t, bad, 400)
	if !bytes.Contains(bad.Body.Data, []byte("MANDATORY_NOT_FOUND")) {
		t.Fatalf("body %s", bad.Body.Data)
	}
	if bad.Records == nil || bad.Records.Failed != 1 || bad.Records.Codes["MANDATORY_NOT_FOUND"] != 1 {
		t.Fatalf("records %+v", bad.Records)
	}
	mixed := r.call("demo", doc{"id": "mixed", "method": "POST", "url": "/v8/Leads", "body": doc{"data": []doc{{"Last_Name": "a"}, {"Company": "x"}, {"Last_Name": "b"}}}})
	wantStatus(t, mixed, 207)
	if mixed.Records == nil || mixed.Records.Succeeded != 2 || mixed.Records.Failed != 1 {
		t.Fatalf("records %+v", mixed.Records)
	}
	for _, h := range bad.Headers {
		if strings.EqualFold(h.Name, "Set-Cookie") || strings.Contains(h.Value, r.Zoho.CookieSecret()) {
			t.Fatalf("a cookie came through: %v", h)
		}
	}
	html := zohotest.AnswerWith("html", 400, "<html><b>no</b></html>", "Content-Type", "text/html")
	r.Zoho.Inject(html.On("GET", "/crm/v8/Leads"))
	got := r.call("demo", list("html"))
	wantStatus(t, got, 400)
	if got.Body.Kind != envelope.TextBody || string(got.Body.Data) != "<html><b>no</b></html>" {
		t.Fatalf("body %v %s", got.Body.Kind, got.Body.Data)
	}
}

// Refusals name the field, use no call, and never stop the queue.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	bad := map[string]string{
		`{"id":"B01","method":"GET","url":"https://evil.example/crm/v8/Leads"}`:                           "url",
		`{"id":"B06","method":"GET","url":"/../oauth/v2/token"}`:                                          "url",
		`{"id":"B07","method":"GET","url":"/v8/%2e%2e/oauth/v2/token"}`:                                   "url",
		`{"id":"B14","method":"GET","url":"/v8/Leads","query":{"authtoken":"x"}}`:                         "query",
		`{"id":"B15","method":"GET","url":"/v8/Leads","headers":{"Authorization":"Zoho-oauthtoken x"}}`:   "headers",
		`{"id":"B17","method":"POST","url":"/v8/Leads","headers":{"Idempotency-Key":"x"},"body":{}}`:      "headers",
		`{"id":"B19","method":"TRACE","url":"/v8/Leads"}`:                                                 "method",
		`{"id":"B20","method":"GET","url":"/v8/Leads","body":{}}`:                                         "body",
		`{"id":"B21","method":"GET","url":"/v8/Leads","reply_to":"$JS.ACK.ZOHO_REQUESTS.w.1.5.1.1.0"}`:    "reply_to",
		`{"id":"B23","method":"GET","url":"/v8/Leads","reply_to":"zoho.requests.demo"}`:                   "reply_to",
		`{"id":"B24","method":"GET","url":"/v8/Leads","connection":"other"}`:                              "connection",
		`{"id":"B29","method":"GET","method":"POST","url":"/v8/Leads"}`:                                   "method",
		`{"id":"B32","method":"GET","url":"/v8/Leads","deadline":"2099-01-01T00:00:00Z"}`:                 "deadline",
		`{"id":"B31","method":"POST","url":"/v8/Leads","body":{},"body_base64":"AAAA"}`:                   "body",
		`{"id":"BUF","method":"POST","url":"/v8/Leads","unique_field":"Key","body":{"data":[{"Key":1}]}}`: "unique_field",
	}
	for document, field := range bad {
		r.publishRaw("demo", []byte(document))
		var id struct{ ID string }
		if err := json.Unmarshal([]byte(document), &id); err != nil {
			t.Fatal(err)
		}
		wantCode(t, r.await("demo", id.ID), envelope.InvalidRequest, field)
	}
	// Nobody can be answered: whole, with the reason, to the dead letters.
	for _, document := range []string{"", "no JSON", "\x00\x01", `{"method":"GET"}`, `{"id":"bad id","method":"GET","url":"/v8/Leads"}`} {
		r.publishRaw("demo", []byte(document))
	}
	stream, err := r.js.Stream(t.Context(), "ZOHO_DEAD")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "five dead letters", func() bool {
		info, err := stream.Info(t.Context())
		return err == nil && info.State.Msgs == 5
	})
	whole := 0
	for seq := uint64(1); seq <= 5; seq++ {
		letter, err := stream.GetMsg(t.Context(), seq)
		if err != nil || letter.Header.Get("Zoho-Dead-Code") != "invalid_request" {
			t.Fatalf("dead letter %v: %v", letter, err)
		}
		if string(letter.Data) == "no JSON" {
			whole++
		}
	}
	if whole != 1 {
		t.Fatalf("%d dead letters hold the request as it came", whole)
	}
	wantStatus(t, r.call("demo", list("good")), 200)
	if n := r.Zoho.Count(zohotest.Match{}); n != 1 {
		t.Fatalf("the simulator saw %d API calls, want the one good", n)
	}
	r.drained()
}

// A connection that nobody added is answered, and one added later works.
func TestUnknownConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.worker()
	r.publish("demo", list("early"))
	wantCode(t, r.await("demo", "early"), envelope.UnknownConnection, "demo")
	r.demo(10)
	wantStatus(t, r.call("demo", list("later")), 200)
	if err := r.store.Remove(t.Context(), "demo", "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the removed connection is unknown", func() bool {
		got := r.call("demo", list(r.id("removed")))
		return got.Error != nil && got.Error.Code == envelope.UnknownConnection
	})
}

// The same id again gets the same answer; with other content, id_conflict.
func TestIDIsIdempotencyKey(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	first := r.call("demo", insert("one", "Once"))
	wantStatus(t, first, 201)
	again := r.call("demo", insert("one", "Once"))
	if string(first.AppendJSON(nil)) != string(again.AppendJSON(nil)) {
		t.Fatalf("the repeated response differs:\n%s\n%s", first.AppendJSON(nil), again.AppendJSON(nil))
	}
	wantCode(t, r.call("demo", insert("one", "Other")), envelope.IDConflict, "one")
	if got := r.executed(); got["Once"] != 1 || got["Other"] != 0 {
		t.Fatalf("the simulator executed %v", got)
	}
	// A refusal uses an id up as an answer does: the request is not sent against it.
	late := insert("late", "Late")
	late["deadline"] = time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)
	wantCode(t, r.call("demo", late), envelope.DeadlineExceeded)
	delete(late, "deadline")
	wantCode(t, r.call("demo", late), envelope.DeadlineExceeded)
	bad := insert("bad", "Bad")
	bad["unknown"] = true
	wantCode(t, r.call("demo", bad), envelope.InvalidRequest)
	wantCode(t, r.call("demo", insert("bad", "Bad")), envelope.IDConflict)
	r.publish("nobody", insert("gone", "Gone"))
	wantCode(t, r.await("nobody", "gone"), envelope.UnknownConnection)
	if got := r.executed(); got["Late"] != 0 || got["Bad"] != 0 {
		t.Fatalf("the simulator executed %v", got)
	}
	// An old copy of an update does not undo what came after it.
	id := r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Updated"})[0]
	update := func(key, company string) doc {
		return doc{"id": key, "method": "PUT", "url": "/v8/Leads/" + id, "body": doc{"data": []doc{{"Company": company}}}}
	}
	wantStatus(t, r.call("demo", update("u1", "first")), 200)
	wantStatus(t, r.call("demo", update("u2", "second")), 200)
	wantStatus(t, r.call("demo", update("u1", "first")), 200)
	for _, record := range r.Zoho.Records(devbox.OrgID, "Leads") {
		if record["Last_Name"] == "Updated" && record["Company"] != "second" {
			t.Fatalf("the record is %v", record)
		}
	}
}

// The deadline ends every wait, and a passed one is never sent.
func TestDeadline(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	past := list("past")
	past["deadline"] = time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)
	wantCode(t, r.call("demo", past), envelope.DeadlineExceeded)
	if n := r.Zoho.Count(zohotest.Match{}); n != 0 {
		t.Fatalf("the simulator saw %d calls", n)
	}
	r.Zoho.Inject(zohotest.AnswerWith("down", 503, "").On("GET", "").Repeat(-1))
	down := list("down")
	down["deadline"] = time.Now().Add(3 * time.Second).UTC().Format(time.RFC3339Nano)
	got := r.call("demo", down)
	wantCode(t, got, envelope.DeadlineExceeded)
	if got.Status != 503 || got.Attempts < 2 {
		t.Fatalf("response is %s, want the last status and several attempts", got.AppendJSON(nil))
	}
}

// A caller that waits sends to zoho.call and gets the answer as the reply.
func TestCallService(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	ask := func(document string) *envelope.Response {
		t.Helper()
		// The caller's headers that the server acts on are none of the request's.
		call := nats.NewMsg("zoho.call.demo")
		call.Data = []byte(document)
		call.Header.Set(jetstream.ExpectedStreamHeader, "OTHER")
		call.Header.Set(jetstream.MsgIDHeader, "always the same")
		msg, err := r.nc.RequestMsg(call, patience)
		if err != nil {
			t.Fatal(err)
		}
		response, err := envelope.DecodeResponse(msg.Data)
		if err != nil {
			t.Fatalf("%v in %s", err, msg.Data)
		}
		return response
	}
	wantStatus(t, ask(` {"id":"a","method":"GET","url":"/v8/Leads?fields=Last_Name"}`), 200)
	wantStatus(t, ask(`{"id":"another","method":"GET","url":"/v8/Leads?fields=Last_Name"}`), 200)
	wantCode(t, ask(`{"id":"b","method":"FETCH","url":"/v8/Leads"}`), envelope.InvalidRequest, "method")
	wantCode(t, ask(`{"id":"c","method":"GET","url":"/v8/Leads","reply_to":"_INBOX.x"}`), envelope.InvalidRequest, "reply_to")
}

// unheard is a JetStream whose acknowledgements of requests don't arrive, for as
// long as loses is more than 0.
type unheard struct {
	jetstream.JetStream
	loses atomic.Int32
}

func (u *unheard) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := u.JetStream.PublishMsg(ctx, msg, o...)
	if err == nil && strings.HasPrefix(msg.Subject, "zoho.requests.") && u.loses.Add(-1) >= 0 {
		return nil, context.DeadlineExceeded
	}
	return ack, err
}

// echoes is a relay that answers everything.
type echoes struct{}

func (echoes) Do(_ context.Context, d *relay.Delivery) relay.Result {
	return relay.Result{Response: &envelope.Response{ID: d.Request.ID, Connection: d.Connection, Status: 200, ReceivedAt: d.ReceivedAt, FinishedAt: d.ReceivedAt}}
}

// echo starts a consumer that answers everything, and stores by way of js.
func (r *rig) echo(js jetstream.JetStream) *consumer.Consumer {
	r.t.Helper()
	clock := &register.Clock{}
	c := consumer.New(consumer.Options{
		Conn: r.nc, JetStream: js, Stream: r.requests(), Relay: echoes{}, Connections: r.store, Tokens: noTokens{}, Responses: consumer.NewResponses(r.js),
		Ledger: ledger.Open(r.js, clock, 5*time.Second), Clock: clock, Decoder: &envelope.Decoder{ReplyPrefixes: []string{nats.InboxPrefix}}, MaxInFlight: 10, Version: "0.0.0", Logger: r.logs.logger(),
	})
	if err := c.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Stop(context.Background()) })
	return c
}

// callOf is a call that whoever is told its id can know again.
func callOf(id string) []byte {
	return fmt.Appendf(nil, `{"id":%q,"method":"POST","url":"/v8/Leads","body":{}}`, id)
}

// A call whose request is stored, and nobody says so, is carried out once and gets
// its answer, and no other that says that it was not stored.
func TestCallUnacknowledged(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	js := &unheard{JetStream: r.js}
	r.echo(js)
	ask := func(id string) *nats.Msg {
		t.Helper()
		msg, err := r.nc.Request("zoho.call.demo", callOf(id), patience)
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}
	js.loses.Store(1)
	for _, id := range []string{"a", "b"} { // each gets its own
		if response, err := envelope.DecodeResponse(ask(id).Data); err != nil || response.Status != 200 || response.ID != id {
			t.Errorf("%+v, %v", response, err)
		}
	}
	r.drained()
	if n := r.requests().CachedInfo().State.LastSeq; n != 2 {
		t.Errorf("%d requests are stored", n)
	}
}

// slow is a JetStream that stores a request when the test lets it, each that held says.
type slow struct {
	jetstream.JetStream
	held    func(n int) bool // whether the nth is
	asked   atomic.Int32
	reached chan struct{} // one for each that is
	release chan struct{}
}

func (s *slow) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	if strings.HasPrefix(msg.Subject, "zoho.requests.") && s.held(int(s.asked.Add(1))) {
		s.reached <- struct{}{}
		<-s.release
	}
	return s.JetStream.PublishMsg(ctx, msg, o...)
}

// Calls don't wait for each other's PubAck.
func TestCallsAreStoredTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	js := &slow{JetStream: r.js, held: func(n int) bool { return n == 1 }, reached: make(chan struct{}, 1), release: make(chan struct{})}
	r.echo(js)
	first, err := r.nc.SubscribeSync(r.nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.nc.PublishRequest("zoho.call.demo", first.Subject, callOf("first")); err != nil {
		t.Fatal(err)
	}
	<-js.reached
	for i := range 10 {
		id := fmt.Sprint("behind-", i)
		msg, err := r.nc.Request("zoho.call.demo", callOf(id), patience)
		if err != nil {
			t.Fatalf("call %s waits for the first to be stored: %v", id, err)
		}
		if response, err := envelope.DecodeResponse(msg.Data); err != nil || response.Status != 200 || response.ID != id {
			t.Errorf("%s: %s, %v", id, msg.Data, err)
		}
	}
	close(js.release)
	if response := answered(t, "answer to the first", first); response.Status != 200 || response.ID != "first" {
		t.Errorf("the first: %s", response.AppendJSON(nil))
	}
}

// A worker that stops stores the calls that have come to it, also those that wait for
// their turn: nobody else has them.
func TestCallsAtStop(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	const n = 200
	js := &slow{JetStream: r.js, held: func(int) bool { return true }, reached: make(chan struct{}, n), release: make(chan struct{})}
	c := r.echo(js)
	refused, err := r.nc.SubscribeSync(r.nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := r.nc.PublishRequest("zoho.call.demo", refused.Subject, callOf(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	<-js.reached // the worker hears calls; all of them when the server has
	if err := r.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.Stop(context.Background())
	}()
	eventually(t, "nobody listens any more", func() bool {
		_, err := r.nc.Request("zoho.orgs", nil, time.Second)
		return errors.Is(err, nats.ErrNoResponders)
	})
	close(js.release)
	<-stopped
	if stored := r.requests().CachedInfo().State.Msgs; stored != n {
		t.Errorf("%d of %d calls are stored", stored, n)
	}
	if msg, err := refused.NextMsg(time.Millisecond); err == nil {
		t.Errorf("a call is answered: %s", msg.Data)
	}
}

// What asks a worker can't have it answer where only the worker may write.
func TestAnswersGoToNoSubjectOfTheWorkers(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.connect("other", "770000001", 5)
	r.worker()
	record := func() uint64 {
		t.Helper()
		stream, err := r.js.Stream(t.Context(), "ZOHO_CONNECTIONS")
		if err != nil {
			t.Fatal(err)
		}
		msg, err := stream.GetLastMsgForSubject(t.Context(), "zoho.connections.other")
		if err != nil {
			t.Fatal(err)
		}
		return msg.Sequence
	}
	before := record()
	for subject, data := range map[string]string{
		"zoho.call.demo": "{}", "zoho.orgs": "", "zoho.hand.demo": "1",
	} {
		if err := r.nc.PublishRequest(subject, "zoho.connections.other", []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	// What was asked before is done by now.
	msg, err := r.nc.Request("zoho.call.demo", []byte(`{"id":"a","method":"GET","url":"/v8/Leads?fields=Last_Name"}`), patience)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.nc.Request("zoho.orgs", nil, patience); err != nil {
		t.Fatal(err)
	}
	if response, err := envelope.DecodeResponse(msg.Data); err != nil || response.Status != 200 {
		t.Errorf("%s, %v", msg.Data, err)
	}
	if after := record(); after != before {
		t.Errorf("another connection's record was written over: revision %d, was %d", after, before)
	}
}

// A large body goes by way of the object store.
func TestBodyObject(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	objects, err := r.js.ObjectStore(t.Context(), "ZOHO_BODIES")
	if err != nil {
		t.Fatal(err)
	}
	large := []byte(`{"data":[{"Last_Name":"Large","Description":"` + strings.Repeat("x", 1<<20) + `"}]}`)
	if _, err := objects.PutBytes(t.Context(), "demo/large", large); err != nil {
		t.Fatal(err)
	}
	post := func(id, object string) doc {
		return doc{"id": id, "method": "POST", "url": "/v8/Leads", "body_object": object, "headers": doc{"Content-Type": "application/json"}}
	}
	wantStatus(t, r.call("demo", post("o", "demo/large")), 201)
	wantCode(t, r.call("demo", post("p", "demo/none")), envelope.InvalidRequest, "body_object: there is no such object")
	// Another connection's object is nobody else's, nor is one that has no owner.
	r.Zoho.AddOrg(zohotest.Org{ID: "770000002", Name: "Other", Concurrency: 5})
	r.connect("dem", "770000002", 5)
	if _, err := objects.PutBytes(t.Context(), "large", large); err != nil {
		t.Fatal(err)
	}
	for i, object := range []string{"demo/large", "large", "dem", "/large"} {
		wantCode(t, r.call("dem", post(fmt.Sprint("q", i), object)), envelope.InvalidRequest, "body_object: must begin with dem/")
	}
	if r.executed()["Large"] != 1 || len(r.Zoho.Records("770000002", "Leads")) > 0 {
		t.Fatalf("inserted %v, and elsewhere %v", r.executed(), r.Zoho.Records("770000002", "Leads"))
	}
}

// An answer that no message can hold is told, with its status.
func TestTooLarge(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	huge := `{"data":"` + strings.Repeat("y", 2<<20) + `"}`
	r.Zoho.Inject(zohotest.AnswerWith("huge", 200, huge, "Content-Type", "application/json").On("GET", "/crm/v8/Leads"))
	got := r.call("demo", list("huge"))
	wantCode(t, got, envelope.TooLarge)
	if got.Status != 200 || got.Body.Kind != envelope.NoBody {
		t.Fatalf("response is %s", got.AppendJSON(nil))
	}
}

// What is published to a wildcard, which the server stores as if it were a name, is
// refused, and touches no request or response of those that the wildcard stands for.
func TestWildcardSubject(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	old := r.demo(10)
	r.worker()
	wantStatus(t, r.call("demo", insert("answered", "Theirs")), 201)
	r.Zoho.RevokeRefreshToken(old)
	_, err := r.store.Update(t.Context(), "demo", func(c *connection.Connection) error {
		c.Status, c.RevokedAt = connection.Revoked, time.Now()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		r.publish("demo", list(fmt.Sprint("waiting-", i)))
		r.publish("demo.bulk", list(fmt.Sprint("bulk-", i)))
	}
	for _, name := range []string{"*", ">", "demo.*", "demo.>", "*.bulk"} {
		wantCode(t, r.call(name, list("answered")), envelope.InvalidRequest, "wildcard")
	}
	if _, err := r.store.Reauthorize(t.Context(), "demo", secret.New(r.Zoho.GrantRefreshToken("user-of-demo")), nil); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		wantStatus(t, r.await("demo", fmt.Sprint("waiting-", i)), 200)
		wantStatus(t, r.await("demo", fmt.Sprint("bulk-", i)), 200)
	}
	r.drained()
}
