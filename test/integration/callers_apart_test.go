package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/envelope"
)

// ear hears what comes to subjects of an account.
type ear struct {
	t    *testing.T
	nc   *nats.Conn
	subs []*nats.Subscription

	mu    sync.Mutex
	heard []*nats.Msg
}

func listen(t *testing.T, nc *nats.Conn, subjects ...string) *ear {
	t.Helper()
	e := &ear{t: t, nc: nc}
	e.listenTo(subjects...)
	return e
}

func (e *ear) listenTo(subjects ...string) {
	e.t.Helper()
	for _, subject := range subjects {
		sub, err := e.nc.Subscribe(subject, func(m *nats.Msg) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.heard = append(e.heard, m)
		})
		if err != nil {
			e.t.Fatal(err)
		}
		e.subs = append(e.subs, sub)
	}
	e.settle()
}

// settle waits until what the server has sent is heard.
func (e *ear) settle() {
	e.t.Helper()
	if err := e.nc.FlushTimeout(patience); err != nil {
		e.t.Fatal(err)
	}
	for _, sub := range e.subs {
		eventually(e.t, "all is heard", func() bool {
			waiting, _, err := sub.Pending()
			return err == nil && waiting == 0
		})
	}
}

// find returns what was heard so far and fits.
func (e *ear) find(fits func(*nats.Msg) bool) (found []*nats.Msg) {
	e.t.Helper()
	e.settle()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, m := range e.heard {
		if fits(m) {
			found = append(found, m)
		}
	}
	return found
}

// Callers in accounts of their own have no way to one another, nor to what is the
// workers': not by subjects, and not by what the server or a worker answers there in
// its own name.
func TestCallersApart(t *testing.T) {
	t.Parallel()
	s := callersRig(t)
	s.worker(s.as("worker"))
	globex, _ := s.caller("globex")
	acme, _ := s.caller("acme")
	// Not all inboxes: whoever hears those of the workers has JetStream take pulls that
	// are over for ones that somebody waits for.
	inside := listen(t, s.nc, "zoho.>", "$JS.API.>", "$JS.ACK.>", "$SRV.>", "$KV.>", "$O.>", "_INBOX.acme.>", "_INBOX.globex.>", "_INBOX.zoho-worker.x")
	mine := listen(t, acme, ">")
	stored, err := acme.SubscribeSync("zoho.responses.acme.*")
	if err != nil {
		t.Fatal(err)
	}
	records := []string{"ZOHO_CONNECTIONS", "ZOHO_TOKENS", "ZOHO_CLAIMS", "ZOHO_QUEUES", "ZOHO_DEAD", "ZOHO_EVENTS", "ZOHO_CONSENTS"}

	// All that globex does, in each way.
	secret := func(id string) doc { return insert(id, "Secret of globex") }
	inbox, err := globex.SubscribeSync(globex.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	request := secret("a")
	request["reply_to"] = inbox.Subject
	acknowledged(t, globex, "zoho.requests.globex", request)
	wantStatus(t, answered(t, "reply", inbox), 201)
	data, _ := json.Marshal(secret("b"))
	if msg, err := globex.Request("zoho.call.globex", data, patience); err != nil {
		t.Fatal(err)
	} else {
		wantStatus(t, responseIn(t, "call", msg), 201)
	}
	acknowledged(t, globex, "zoho.requests.globex-eu.bulk", secret("c"))
	wantStatus(t, s.await("globex-eu", "c"), 201)
	if overheard := mine.find(func(m *nats.Msg) bool {
		return bytes.Contains(m.Data, []byte("globex")) || strings.Contains(m.Subject, "globex")
	}); len(overheard) > 0 {
		t.Errorf("acme hears %s: %s", overheard[0].Subject, overheard[0].Data)
	}
	before := map[string]map[string]*jetstream.RawStreamMsg{}
	for _, stream := range records {
		before[stream] = s.last(stream)
	}

	// A worker's own inbox is shown by each response that it stores.
	acknowledged(t, acme, "zoho.requests.acme", insert("first", "First"))
	first, err := stored.NextMsg(patience)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(first.Reply, "_INBOX.zoho-worker.run.") {
		t.Fatalf("the worker is answered at %q", first.Reply)
	}
	inside.listenTo(first.Reply)

	// The PubAck goes where the publisher says: in its own account.
	targets := []string{
		"zoho.connections.globex", "zoho.identities.us.production.770000002.user-of-globex", "zoho.tokens.globex", "zoho.claims.globex.x", "zoho.queues.org-us-production-770000002",
		"zoho.responses.globex.x", "zoho.requests.globex", "zoho.requests.globex.bulk", "zoho.dead.globex", "zoho.events.globex", "zoho.workers.x", "zoho.wake.globex",
		"zoho.orgs", "zoho.hand.globex", "_INBOX.globex.x", inbox.Subject, "_INBOX.zoho-worker.x", first.Reply,
		"$JS.API.STREAM.DELETE.ZOHO_CLAIMS", "$JS.API.STREAM.PURGE.ZOHO_CLAIMS", "$JS.API.STREAM.MSG.DELETE.ZOHO_CONNECTIONS", "$SRV.STATS.zoho",
	}
	for i, target := range targets {
		request, _ := json.Marshal(insert(fmt.Sprint("ack-", i), "Acknowledged"))
		if err := acme.PublishRequest("zoho.requests.acme", target, request); err != nil {
			t.Fatal(err)
		}
		// The same by a trace, which the server sends in its own name, too.
		traced := &nats.Msg{Subject: "zoho.requests.acme", Header: nats.Header{"Nats-Trace-Dest": {target}}}
		traced.Data, _ = json.Marshal(insert(fmt.Sprint("trace-", i), "Traced"))
		if err := acme.PublishMsg(traced); err != nil {
			t.Fatal(err)
		}
		// And by the worker, as a reply or as the answer to a call.
		asked := insert(fmt.Sprint("reply-", i), "Replied")
		asked["reply_to"] = target
		acknowledged(t, acme, "zoho.requests.acme", asked)
		if err := acme.PublishRequest("zoho.call.acme", target, []byte("no JSON")); err != nil {
			t.Fatal(err)
		}
	}
	for i, target := range targets {
		wantStatus(t, s.await("acme", fmt.Sprint("ack-", i)), 201)
		wantStatus(t, s.await("acme", fmt.Sprint("trace-", i)), 201)
		response := s.await("acme", fmt.Sprint("reply-", i))
		if open := strings.HasPrefix(target, "_INBOX.") && target != first.Reply; open {
			wantStatus(t, response, 201) // another's inbox: a nuisance, and it says whose it is
		} else {
			wantCode(t, response, envelope.InvalidRequest, "reply_to")
		}
		if !strings.HasPrefix(target, "$") && !strings.HasPrefix(target, "zoho.requests.") {
			if acks := mine.find(func(m *nats.Msg) bool { return m.Subject == target && bytes.Contains(m.Data, []byte(`"seq"`)) }); len(acks) == 0 {
				t.Errorf("nothing came back to acme at %s: it was not tried", target)
			}
		}
		forged := inside.find(func(m *nats.Msg) bool {
			return m.Subject == target && (bytes.Contains(m.Data, []byte(`"stream":"ZOHO_REQUESTS"`)) || bytes.Contains(m.Data, []byte(`"no JSON"`)) || bytes.Contains(m.Data, []byte("invalid_request")) || bytes.Contains(m.Data, []byte(`"request"`)))
		})
		if len(forged) > 0 {
			t.Errorf("acme had something sent to %s: %s", target, forged[len(forged)-1].Data)
		}
	}

	// What it publishes to other subjects stays in its account, and what it asks there nobody answers.
	const mark = "an attack"
	outside := []string{
		"zoho.requests.globex", "zoho.requests.globex.bulk", "zoho.requests.acme2", "zoho.requests.acme.heavy", "zoho.requests.acme.bulk.heavy", "zoho.requests.acme.lane",
		"zoho.requests.*", "zoho.requests.>", "zoho.requests.globex-eu.bulk", "zoho.call.globex", "zoho.call.*",
		"zoho.responses.acme.forged", "zoho.responses.globex.x", "zoho.claims.acme.a", "zoho.claims.globex.x", "zoho.tokens.acme", "zoho.connections.acme", "zoho.connections.globex",
		"zoho.events.acme", "zoho.dead.acme", "zoho.consents.a.b", "zoho.hand.acme", "zoho.activity.acme", "zoho.wake.acme", "zoho.orgs", "zoho.workers.x", "zoho.queues.x",
		"_INBOX.zoho-worker.x", "_INBOX.acme.x", "_INBOX.globex.x", inbox.Subject, first.Reply, "$O.ZOHO_BODIES.C.x", "$KV.x",
		"$JS.API.INFO", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.INFO.ZOHO_REQUESTS", "$JS.API.STREAM.DELETE.ZOHO_REQUESTS", "$JS.API.STREAM.PURGE.ZOHO_CLAIMS",
		"$JS.API.STREAM.MSG.GET.ZOHO_RESPONSES", "$JS.API.STREAM.MSG.GET.ZOHO_CONNECTIONS", "$JS.API.DIRECT.GET.ZOHO_RESPONSES", "$JS.API.STREAM.MSG.DELETE.ZOHO_REQUESTS",
		"$JS.API.DIRECT.GET.ZOHO_RESPONSES.zoho.responses.globex.a", "$JS.API.CONSUMER.CREATE.ZOHO_REQUESTS.x.zoho.requests.acme", "$JS.API.CONSUMER.MSG.NEXT.ZOHO_REQUESTS.acme",
		"$JS.API.CONSUMER.DELETE.ZOHO_REQUESTS.acme", "$JS.ACK.ZOHO_REQUESTS.acme.1.1.1.1.0", "$JS.SNAPSHOT.RESTORE.x", "$JSC.R.x",
		"$SRV.PING", "$SRV.PING.zoho", "$SRV.INFO", "$SRV.INFO.zoho", "$SRV.STATS", "$SRV.STATS.zoho", "$SYS.REQ.SERVER.PING", "$SYS.ACCOUNT.ZOHO.CONNECT",
	}
	for _, subject := range outside {
		answer, err := acme.Request(subject, []byte(`{"mark":"`+mark+`"}`), 300*time.Millisecond)
		// 10039: JetStream is not for this account; 10025: it isn't even read.
		if err == nil && !bytes.Contains(answer.Data, []byte(`"err_code":10039`)) && !bytes.Contains(answer.Data, []byte(`"err_code":10025`)) {
			t.Errorf("%s answers acme: %s", subject, answer.Data)
		}
	}
	if through := inside.find(func(m *nats.Msg) bool { return bytes.Contains(m.Data, []byte(mark)) }); len(through) > 0 {
		t.Errorf("acme reached %s", through[0].Subject)
	}

	// Nothing of another's was touched, and all is well.
	for _, stream := range records {
		after := s.last(stream)
		for subject, was := range before[stream] {
			if is := after[subject]; is == nil || strings.Contains(subject, "globex") && is.Sequence != was.Sequence {
				t.Errorf("%s was changed: %+v", subject, is)
			}
		}
		for subject := range after {
			if before[stream][subject] == nil && !strings.Contains(subject, "acme") && !strings.Contains(subject, "770000001") {
				t.Errorf("%s has come into %s", subject, stream)
			}
		}
	}
	if msg, err := globex.Request("zoho.call.globex", []byte(`{"id":"after","method":"GET","url":"/v8/Leads?fields=Last_Name"}`), patience); err != nil {
		t.Error(err)
	} else {
		wantStatus(t, responseIn(t, "call", msg), 200)
	}
	for _, record := range s.Zoho.Records("770000001", "Leads") {
		if strings.Contains(fmt.Sprint(record["Last_Name"]), "globex") {
			t.Errorf("acme's org has %v", record)
		}
	}
	// Nobody without a known certificate gets in.
	if nc, err := nats.Connect(s.NATSURL, nats.RootCAs(s.authority.path("ca.crt"))); err == nil {
		nc.Close()
		t.Error("somebody without a certificate gets in")
	}
	if nc, err := nats.Connect(s.NATSURL, nats.RootCAs(s.authority.path("ca.crt")),
		nats.ClientCert(s.authority.path("stranger.crt"), s.authority.path("stranger.key"))); err == nil {
		nc.Close()
		t.Error("somebody who is no user gets in")
	}
}
