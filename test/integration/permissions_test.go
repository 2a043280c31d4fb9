package integration

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/zoho/zohotest"
)

// The shipped permissions are enough for the whole path, and for nothing else.
func TestPermissionsOfWorker(t *testing.T) {
	t.Parallel()
	s := newSecureRig(t)
	s.demo(5)
	w := s.worker(s.as("worker"))
	// Every way that a request can go.
	wantStatus(t, s.call("demo", list("get")), 200)
	wantStatus(t, s.call("demo", insert("post", "One")), 201)
	wantStatus(t, s.call("demo", insert("post", "One")), 201)
	objects, err := s.js.ObjectStore(t.Context(), "ZOHO_BODIES")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := objects.PutBytes(t.Context(), "demo/large", []byte(`{"data":[{"Last_Name":"Large","Description":"`+strings.Repeat("x", 1<<20)+`"}]}`)); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, s.call("demo", doc{"id": "o", "method": "POST", "url": "/v8/Leads", "body_object": "demo/large", "headers": doc{"Content-Type": "application/json"}}), 201)
	msg, err := s.nc.Request("zoho.call.demo", []byte(`{"id":"c","method":"GET","url":"/v8/Leads?fields=Last_Name"}`), patience)
	if err != nil {
		t.Fatal(err)
	}
	if response, err := envelope.DecodeResponse(msg.Data); err != nil || response.Status != 200 {
		t.Fatalf("call: %s, %v", msg.Data, err)
	}
	s.publishRaw("demo", []byte("no JSON")) // a dead letter
	wantCode(t, s.call("nobody", list("u")), envelope.UnknownConnection)
	s.Zoho.Inject(zohotest.AnswerWith("limit", 429, "", "Retry-After", "1").On("GET", "/crm/v8/Accounts").Repeat(1)) // a pause and its event
	wantStatus(t, s.call("demo", doc{"id": "p", "method": "GET", "url": "/v8/Accounts", "query": doc{"fields": "Account_Name"}}), 204)
	// A queue that changes, a connection revoked and authorized again.
	s.connect2("second")
	wantStatus(t, s.call("second", list("s")), 200)
	s.revoke(w, "demo", "test")
	late := list("late")
	late["deadline"] = time.Now().Add(2 * time.Second).UTC().Format(time.RFC3339Nano)
	wantCode(t, s.call("demo", late), envelope.ReauthorizationRequired)
	if metric(t, w.HTTPAddr, "zoho_worker_requests_total", "outcome=dead") != 1 {
		t.Error("no dead letter")
	}
	s.drained()
	// Another worker: it hears of requests whose org the first serves, and is given
	// the orgs when that one stops. Both are asked what they serve and have in hand.
	other := s.worker(s.as("worker"))
	hold := s.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"})
	for i := range 20 {
		s.publish("second", insert(fmt.Sprint("h", i), fmt.Sprint("Held", i)))
	}
	<-hold.Reached()
	asking, err := app.Connect(s.configAs2("worker", "_INBOX.zoho-worker"), "why", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(asking.Close)
	ajs, err := jetstream.New(asking)
	if err != nil {
		t.Fatal(err)
	}
	reader := &inspect.Reader{NC: asking, JS: ajs}
	eventually(t, "a request in hand is told of", func() bool {
		why, err := reader.Why(t.Context(), "second", "h0")
		return err == nil && why.State == inspect.InCall
	})
	if overview, err := reader.Overview(t.Context()); err != nil || len(overview.Workers) != 2 {
		t.Errorf("overview %+v, %v", overview, err)
	}
	hold.Release()
	stop(w)
	for i := range 20 {
		wantStatus(t, s.await("second", fmt.Sprint("h", i)), 201)
	}
	wantStatus(t, s.call("second", list("after")), 200)
	if metric(t, other.HTTPAddr, "zoho_worker_requests_total", "outcome=answered") == 0 {
		t.Error("the other worker answered nothing")
	}
	if faults, all := findings(t, s.configAs("worker")); faults != "" {
		t.Errorf("worker check finds faults:\n%s", all)
	}
	if seen := s.violations.of("worker.zoho-worker"); len(seen) > 0 {
		t.Errorf("the worker wanted what it may not:\n%s", strings.Join(seen, "\n"))
	}
	// It may not touch what is nobody's but the account's, nor say what only callers
	// or the server say.
	nc := s.connect("worker", nats.CustomInboxPrefix("_INBOX.zoho-worker"))
	for _, stream := range inspect.Streams() {
		for _, call := range []string{"DELETE", "PURGE", "SNAPSHOT", "RESTORE", "PEER.REMOVE", "LEADER.STEPDOWN"} {
			mayNotPublish(t, nc, "$JS.API.STREAM."+call+"."+stream)
		}
	}
	for _, subject := range []string{
		"$JS.API.STREAM.MSG.DELETE.ZOHO_CLAIMS", "$JS.API.STREAM.MSG.DELETE.ZOHO_RESPONSES", "$JS.API.STREAM.MSG.DELETE.ZOHO_QUEUES",
		"$JS.API.STREAM.CREATE.OTHER", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.CONSUMER.CREATE.ZOHO_CLAIMS.x", "$JS.API.CONSUMER.CREATE.ZOHO_RESPONSES.x",
		"$JS.ACK.ZOHO_DEAD.x.1.1.1.1.0", "$JS.API.ACCOUNT.PURGE.ZOHO", "$SYS.REQ.SERVER.PING", "$SRV.PING", "$KV.x",
		"zoho.activity.acme", "zoho.call.acme", "zoho.workers.a.b", "zoho.queues.a.b", "zoho.hand.a.b", "zoho.orgs.a", "other",
	} {
		mayNotPublish(t, nc, subject)
	}
	for _, subject := range []string{
		">", "zoho.>", "zoho.requests.>", "zoho.responses.>", "zoho.tokens.*", "zoho.connections.*", "zoho.workers.*", "zoho.queues.*",
		"_INBOX.>", "_INBOX.acme.>", "$JS.>", "$JS.API.>", "$JS.EVENT.>", "$SRV.>", "$SYS.>",
	} {
		mayNotSubscribe(t, nc, subject)
	}
}

func mayNotPublish(t *testing.T, nc *nats.Conn, subject string) {
	t.Helper()
	if err := nc.Publish(subject, []byte("{}")); err == nil && !violated(nc, "publish", subject) {
		t.Errorf("it may publish to %s", subject)
	}
}

func mayNotSubscribe(t *testing.T, nc *nats.Conn, subject string) {
	t.Helper()
	sub, err := nc.SubscribeSync(subject)
	if err == nil && !violated(nc, "subscription", subject) {
		t.Errorf("it may subscribe to %s", subject)
	}
	if sub != nil {
		_ = sub.Unsubscribe()
	}
}

func (s *secureRig) configAs(user string) app.Config {
	c := s.config()
	s.as(user)(&c)
	return c
}

// connect2 adds a connection to the org of demo.
func (s *secureRig) connect2(name string) { s.rig.connect(name, "770000001", 5) }

// violated reports whether the server refused what was just sent: it says so before it
// answers a flush.
func violated(nc *nats.Conn, what, subject string) bool {
	if nc.FlushTimeout(patience) != nil {
		return false
	}
	err := nc.LastError()
	return errors.Is(err, nats.ErrPermissionViolation) && strings.Contains(strings.ToLower(err.Error()), strings.ToLower(what+` to "`+subject+`"`))
}

// An observer sees the status, and no content.
func TestPermissionsOfObserver(t *testing.T) {
	t.Parallel()
	s := newSecureRig(t)
	s.demo(5)
	s.worker(s.as("worker"))
	wantStatus(t, s.call("demo", insert("one", "One")), 201)
	nc, err := app.Connect(s.configAs2("observer", "_INBOX.observer"), "observer", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	overview, err := (&inspect.Reader{NC: nc, JS: js}).Overview(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(overview.Workers) != 1 || overview.Connections["active"] != 1 || len(overview.Queues) != 1 {
		t.Fatalf("overview %+v", overview)
	}
	for _, stream := range overview.Streams {
		if stream.Missing || stream.Err != "" {
			t.Errorf("stream %+v", stream)
		}
	}
	if seen := s.violations.of("observer.zoho-worker"); len(seen) > 0 {
		t.Errorf("the observer wanted what it may not:\n%s", strings.Join(seen, "\n"))
	}
	for _, subject := range []string{
		"$JS.API.STREAM.MSG.GET.ZOHO_RESPONSES", "$JS.API.STREAM.MSG.GET.ZOHO_CONNECTIONS", "$JS.API.STREAM.MSG.GET.ZOHO_TOKENS",
		"$JS.API.CONSUMER.CREATE.ZOHO_RESPONSES", "$JS.API.STREAM.DELETE.ZOHO_DEAD", "zoho.requests.demo", "zoho.hand.demo", "zoho.queues.x", "zoho.workers.x", "zoho.wake.demo", "zoho.claims.demo.one", "zoho.responses.demo.one",
	} {
		mayNotPublish(t, nc, subject)
	}
}

// Who forgets the prefix of the inboxes is told so, not only that no answer came.
func TestPermissionsInbox(t *testing.T) {
	t.Parallel()
	s := newSecureRig(t)
	told := &logs{}
	nc, err := app.Connect(s.configAs2("observer", ""), "observer", told.logger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if _, err := nc.Request("$JS.API.INFO", nil, 300*time.Millisecond); err == nil {
		t.Fatal("an answer, and nothing to tell of")
	}
	eventually(t, "the prefix is asked for", func() bool {
		return strings.Contains(told.tail(5), "level=ERROR") && strings.Contains(told.tail(5), "--nats-inbox-prefix")
	})
}

func (s *secureRig) configAs2(user, inbox string) app.Config {
	c := s.configAs(user)
	c.NATSInboxPrefix = inbox
	return c
}
