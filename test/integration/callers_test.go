package integration

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho/zohotest"
)

// callersRig is a secureRig with the connections of the two callers that
// deploy/nats/accounts.conf has as examples.
func callersRig(t *testing.T) *secureRig {
	t.Helper()
	s := newSecureRig(t)
	s.Zoho.AddOrg(zohotest.Org{ID: "770000001", Name: "Acme", Concurrency: 5})
	s.Zoho.AddOrg(zohotest.Org{ID: "770000002", Name: "Globex", Concurrency: 5})
	s.Zoho.Seed("770000001", "Leads", map[string]any{"Last_Name": "of acme"})
	s.Zoho.Seed("770000002", "Leads", map[string]any{"Last_Name": "of globex"})
	s.rig.connect("acme", "770000001", 5)
	s.rig.connect("globex", "770000002", 5)
	s.rig.connect("globex-eu", "770000002", 5)
	return s
}

// caller connects as one of the callers, and has what it is refused told.
func (s *secureRig) caller(name string) (nc *nats.Conn, refused <-chan error) {
	s.t.Helper()
	told := make(chan error, 100)
	return s.connect(name, nats.CustomInboxPrefix("_INBOX."+name), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { told <- err })), told
}

// answered takes the next response that a subscription hears.
func answered(t *testing.T, what string, sub *nats.Subscription) *envelope.Response {
	t.Helper()
	msg, err := sub.NextMsg(patience)
	if err != nil {
		t.Fatalf("no %s: %v", what, err)
	}
	return responseIn(t, what, msg)
}

func responseIn(t *testing.T, what string, msg *nats.Msg) *envelope.Response {
	t.Helper()
	response, err := envelope.DecodeResponse(msg.Data)
	if err != nil {
		t.Fatalf("%s: %s, %v", what, msg.Data, err)
	}
	return response
}

// acknowledged publishes as a caller without JetStream does, and wants the PubAck.
func acknowledged(t testing.TB, nc *nats.Conn, subject string, request doc) {
	t.Helper()
	data, err := json.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	msg, err := nc.Request(subject, data, patience)
	if err != nil {
		t.Fatalf("%s is not acknowledged: %v", subject, err)
	}
	var ack jetstream.PubAck
	if err := json.Unmarshal(msg.Data, &ack); err != nil || ack.Stream != consumer.RequestStream {
		t.Fatalf("%s: %s is no PubAck of the requests", subject, msg.Data)
	}
}

// A caller in an account of its own is served in every way there is.
func TestCallersAreServed(t *testing.T) {
	t.Parallel()
	s := callersRig(t)
	for name, connections := range map[string][]string{"acme": {"acme"}, "globex": {"globex", "globex-eu"}} {
		nc, _ := s.caller(name)
		if _, err := nc.Request("zoho.call."+name, []byte("{}"), patience); !errors.Is(err, nats.ErrNoResponders) {
			t.Errorf("%s calls, and no worker is there: %v", name, err)
		}
		for _, connection := range connections {
			// What is published before a worker is there waits for it.
			acknowledged(t, nc, "zoho.requests."+connection+".bulk", insert("early", "Early of "+connection))
		}
	}
	s.worker(s.as("worker"))
	for _, name := range []string{"acme", "globex", "globex-eu"} {
		wantStatus(t, s.await(name, "early"), 201)
	}
	for _, name := range []string{"acme", "globex"} {
		nc, refused := s.caller(name)
		subscribe := func(subject string) *nats.Subscription {
			t.Helper()
			sub, err := nc.SubscribeSync(subject)
			if err != nil {
				t.Fatal(err)
			}
			return sub
		}
		stored, inbox := subscribe("zoho.responses."+name+".*"), nc.NewInbox()
		replies := subscribe(inbox)
		// Published: acknowledged, answered at the inbox and heard as it is stored.
		request := insert("post", "Posted by "+name)
		request["reply_to"] = inbox
		acknowledged(t, nc, "zoho.requests."+name, request)
		for what, sub := range map[string]*nats.Subscription{"reply": replies, "stored response": stored} {
			if response := answered(t, what, sub); response.ID != "post" || response.Connection != name {
				t.Errorf("%s is %s", what, response.AppendJSON(nil))
			} else {
				wantStatus(t, response, 201)
			}
		}
		// Again: answered by what is stored, and not carried out.
		acknowledged(t, nc, "zoho.requests."+name, request)
		wantStatus(t, answered(t, "repeated reply", replies), 201)
		// With the client's own JetStream, which finds no API.
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		read := list("read")
		read["reply_to"] = inbox
		data, _ := json.Marshal(read)
		if _, err := js.Publish(t.Context(), "zoho.requests."+name, data); err != nil {
			t.Fatal(err)
		}
		wantStatus(t, answered(t, "reply to a read", replies), 200)
		// Called: a read leaves nothing behind, a write is stored, too, what can't be
		// carried out is refused.
		for _, call := range []struct {
			doc    doc
			status int
			stored bool
		}{{list("call-read"), 200, false}, {insert("call-write", "Called by "+name), 201, true}} {
			data, _ := json.Marshal(call.doc)
			msg, err := nc.Request("zoho.call."+name, data, patience)
			if err != nil {
				t.Fatalf("call of %s: %v", name, err)
			}
			wantStatus(t, responseIn(t, "call", msg), call.status)
			if kept, err := consumer.NewResponses(s.js).Lookup(t.Context(), name, call.doc["id"].(string)); err != nil || (kept != nil) != call.stored {
				t.Errorf("%v of %s is stored: %v, %v", call.doc["id"], name, kept != nil, err)
			}
		}
		if msg, err := nc.Request("zoho.call."+name, []byte("no JSON"), patience); err != nil {
			t.Errorf("a call that is none: %v", err)
		} else {
			wantCode(t, responseIn(t, "refusal", msg), envelope.InvalidRequest)
		}
		// The command line.
		cmd := exec.Command(binary(t, failpointBuild), "call", name, "GET", "/v8/Leads", "--query", "fields=Last_Name")
		cmd.Env = []string{
			"NATS_URL=" + s.NATSURL, "NATS_CA=" + s.authority.path("ca.crt"), "NATS_CERT=" + s.authority.path(name+".crt"),
			"NATS_KEY=" + s.authority.path(name+".key"), "NATS_INBOX_PREFIX=_INBOX." + name,
		}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "Last_Name") {
			t.Errorf("worker call: %v\n%s", err, out)
		}
		select {
		case err := <-refused:
			t.Errorf("what %s needs is refused: %v", name, err)
		default:
		}
	}
	// Events, where they are imported.
	nc, _ := s.caller("acme")
	events, err := nc.SubscribeSync("zoho.events.acme")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	s.Zoho.Inject(zohotest.AnswerWith("limit", 429, "", "Retry-After", "1").On("GET", "/crm/v8/Accounts").Repeat(1))
	acknowledged(t, nc, "zoho.requests.acme", doc{"id": "p", "method": "GET", "url": "/v8/Accounts", "query": doc{"fields": "Account_Name"}})
	if msg, err := events.NextMsg(patience); err != nil || !bytes.Contains(msg.Data, []byte(`"paused"`)) {
		t.Errorf("no event: %v", err)
	}
	if seen := s.violations.of("worker.zoho-worker"); len(seen) > 0 {
		t.Errorf("the worker wanted what it may not:\n%s", strings.Join(seen, "\n"))
	}
	for org, name := range map[string]string{"770000001": "acme", "770000002": "globex"} {
		times := map[string]int{}
		for _, record := range s.Zoho.Records(org, "Leads") {
			times[fmt.Sprint(record["Last_Name"])]++
		}
		if times["Posted by "+name] != 1 || times["Called by "+name] != 1 {
			t.Errorf("of %s there is %v", name, times)
		}
	}
}

// A caller is added and taken away while the server runs, as docs/deploy.md says.
// Nobody else notices, and who is taken away is out at once.
func TestCallerComesAndGoes(t *testing.T) {
	t.Parallel()
	s := callersRig(t)
	s.rig.connect("initech", "770000002", 5)
	s.authority.issue("initech", x509.ExtKeyUsageClientAuth, "initech.zoho-worker")
	w := s.worker(s.as("worker"))
	acme, _ := s.caller("acme")
	// A call that is under way meanwhile.
	hold := s.Zoho.Hold(zohotest.BodyRead, zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"})
	defer hold.Release()
	called := make(chan error, 1)
	go func() {
		msg, err := acme.Request("zoho.call.acme", []byte(`{"id":"held","method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"Held"}]}}`), patience)
		if err == nil && !bytes.Contains(msg.Data, []byte(`"status":201`)) {
			err = errors.New(string(msg.Data))
		}
		called <- err
	}()
	<-hold.Reached()
	with := func(accounts string) string {
		begin, end := strings.Index(accounts, "  ACME: {"), strings.Index(accounts, "  # Another, with two")
		if begin < 0 || end < begin {
			t.Fatal("the shipped accounts have no block of a caller to copy")
		}
		block := strings.NewReplacer("ACME", "INITECH", "acme", "initech").Replace(accounts[begin:end])
		return accounts[:end] + block + accounts[end:]
	}
	s.reload(with)
	s.reload(with) // nats-server 2.15 begins a new account's service imports at the second
	initech, _ := s.caller("initech")
	const read = `{"id":"read","method":"GET","url":"/v8/Leads?fields=Last_Name"}`
	if msg, err := initech.Request("zoho.call.initech", []byte(read), patience); err != nil {
		t.Errorf("the new caller: %v", err)
	} else {
		wantStatus(t, responseIn(t, "call", msg), 200)
	}
	if _, err := initech.Request("zoho.call.acme", []byte(read), patience); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("the new caller calls for another: %v", err)
	}
	hold.Release()
	if err := <-called; err != nil {
		t.Errorf("a call that was under way when the new one came: %v", err)
	}
	s.reload(unchanged)
	eventually(t, "the caller is out", func() bool { return !initech.IsConnected() })
	if msg, err := acme.Request("zoho.call.acme", []byte(read), patience); err != nil {
		t.Errorf("those that stay: %v", err)
	} else {
		wantStatus(t, responseIn(t, "call", msg), 200)
	}
	isReady(t, w.HTTPAddr)
}
