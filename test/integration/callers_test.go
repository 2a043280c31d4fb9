package integration

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
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

// bodies opens the store of large bodies, as a caller does whose account imports it.
func bodies(t *testing.T, nc *nats.Conn) jetstream.ObjectStore {
	t.Helper()
	js, err := jetstream.NewWithAPIPrefix(nc, "BODIES.API")
	if err != nil {
		t.Fatal(err)
	}
	store, err := js.ObjectStore(t.Context(), "ZOHO_BODIES")
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// putLarge puts a lead that no message could hold.
func putLarge(t *testing.T, store jetstream.ObjectStore, object, lastName string) *jetstream.ObjectInfo {
	t.Helper()
	info, err := store.PutBytes(t.Context(), object, []byte(`{"data":[{"Last_Name":"`+lastName+`","Description":"`+strings.Repeat("x", 1<<20)+`"}]}`))
	if err != nil {
		t.Fatalf("put %s: %v", object, err)
	}
	return info
}

// post publishes a request whose body is an object, and returns the response.
func (s *secureRig) post(nc *nats.Conn, connection, id, object string) *envelope.Response {
	s.t.Helper()
	acknowledged(s.t, nc, "zoho.requests."+connection, doc{"id": id, "method": "POST", "url": "/v8/Leads", "body_object": object, "headers": doc{"Content-Type": "application/json"}})
	return s.await(connection, id)
}

// lastNames are those of the leads that an org has, sorted.
func (s *secureRig) lastNames(org string) string {
	var names []string
	for _, record := range s.Zoho.Records(org, "Leads") {
		names = append(names, fmt.Sprint(record["Last_Name"]))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// sharing has ACME import the store of large bodies as GLOBEX does.
func sharing(t *testing.T, accounts string) string {
	t.Helper()
	begin, own := strings.Index(accounts, `      { service: { account: ZOHO, subject: "$JS.API.STREAM.INFO.OBJ_ZOHO_BODIES" },`), `      { stream: { account: ZOHO, subject: "_INBOX.acme.>" } }`
	if begin < 0 || !strings.Contains(accounts, own) {
		t.Fatal("the shipped accounts have no imports of bodies to copy")
	}
	imports, _, _ := strings.Cut(accounts[begin:], "    ]\n")
	return strings.Replace(accounts, own, own+"\n"+imports, 1)
}

// The one caller whose account imports the store of large bodies puts them there, has
// them sent, and gets at nothing else of JetStream's.
func TestCallerPutsBodies(t *testing.T) {
	t.Parallel()
	s := callersRig(t)
	s.worker(s.as("worker"), unhurried)
	globex, _ := s.caller("globex")
	store := bodies(t, globex)
	putLarge(t, store, "globex/leads.json", "First")
	wantStatus(t, s.post(globex, "globex", "first", "globex/leads.json"), 201)
	putLarge(t, store, "globex/leads.json", "Second") // in place of the other
	wantStatus(t, s.post(globex, "globex", "second", "globex/leads.json"), 201)
	putLarge(t, store, "acme/leads.json", "Third")
	wantCode(t, s.post(globex, "globex", "third", "acme/leads.json"), envelope.InvalidRequest, "body_object: must begin with globex/")
	if got := s.lastNames("770000002"); got != "First, Second, of globex" {
		t.Errorf("globex's org has %s", got)
	}

	// The chunks are not read, nothing is purged by JetStream's API, and no other stream
	// is reached: neither by the prefix nor without it, by neither caller.
	acme, _ := s.caller("acme")
	inside := listen(t, s.nc, "$JS.API.>", "$O.>", "zoho.>")
	const mark = "an attack"
	for name, nc := range map[string]*nats.Conn{"globex": globex, "acme": acme} {
		subjects := []string{"$O.ZOHO_BODIES.X.x", "$O.ZOHO_BODIES.C.x.y", "$O.OTHER.C.x", "$O.OTHER.M.x"}
		calls := []string{
			"INFO", "STREAM.NAMES", "STREAM.INFO.ZOHO_REQUESTS", "STREAM.INFO.*", "STREAM.UPDATE.OBJ_ZOHO_BODIES", "STREAM.DELETE.OBJ_ZOHO_BODIES",
			"STREAM.PURGE.OBJ_ZOHO_BODIES", "STREAM.MSG.GET.OBJ_ZOHO_BODIES", "STREAM.MSG.DELETE.OBJ_ZOHO_BODIES", "STREAM.SNAPSHOT.OBJ_ZOHO_BODIES",
			"DIRECT.GET.OBJ_ZOHO_BODIES", "DIRECT.GET.OBJ_ZOHO_BODIES.$O.ZOHO_BODIES.C.x", "DIRECT.GET.OBJ_ZOHO_BODIES.$O.ZOHO_BODIES.C.*", "DIRECT.GET.OBJ_ZOHO_BODIES.$O.>",
			"DIRECT.GET.ZOHO_RESPONSES.zoho.responses.acme.x", "CONSUMER.CREATE.OBJ_ZOHO_BODIES.x", "CONSUMER.CREATE.OBJ_ZOHO_BODIES.x.$O.ZOHO_BODIES.C.x",
		}
		if name == "acme" {
			subjects = append(subjects, "$O.ZOHO_BODIES.C.x", "$O.ZOHO_BODIES.M.x")
			calls = append(calls, "STREAM.INFO.OBJ_ZOHO_BODIES", "DIRECT.GET.OBJ_ZOHO_BODIES.$O.ZOHO_BODIES.M.x")
		}
		for _, call := range calls {
			subjects = append(subjects, "$JS.API."+call, "BODIES.API."+call)
		}
		for _, subject := range subjects {
			answer, err := nc.Request(subject, []byte(`{"mark":"`+mark+`"}`), 300*time.Millisecond)
			if err == nil && !bytes.Contains(answer.Data, []byte(`"err_code":10039`)) && !bytes.Contains(answer.Data, []byte(`"err_code":10025`)) {
				t.Errorf("%s answers %s: %s", subject, name, answer.Data)
			}
		}
	}
	if through := inside.find(func(m *nats.Msg) bool { return bytes.Contains(m.Data, []byte(mark)) }); len(through) > 0 {
		t.Errorf("a caller reached %s", through[0].Subject)
	}
	// An account that the exports don't name can't import them: NATS takes no such file.
	shipped, err := os.ReadFile("../../deploy/nats/accounts.conf")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "accounts.conf")
	if err := os.WriteFile(file, []byte(sharing(t, string(shipped))), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.ProcessConfigFile(file); err == nil || !strings.Contains(err.Error(), "import not authorized") {
		t.Errorf("acme imports what is exported to globex: %v", err)
	}
}

// Why one caller puts large bodies and not each: who shares the store can do all of
// this to the others. Should one of these no longer go, docs/security.md says too much.
func TestCallersWhoShareBodies(t *testing.T) {
	t.Parallel()
	s := callersRig(t)
	with := func(accounts string) string {
		return strings.ReplaceAll(sharing(t, accounts), "accounts: [GLOBEX]", "accounts: [GLOBEX, ACME]")
	}
	s.reload(with)
	s.worker(s.as("worker"), unhurried)
	acme, _ := s.caller("acme")
	globex, _ := s.caller("globex")
	theirs, store := bodies(t, acme), bodies(t, globex)
	put := putLarge(t, theirs, "acme/leads.json", "Secret of acme")

	// See names, sizes and digests.
	msg, err := globex.Request("BODIES.API.DIRECT.GET.OBJ_ZOHO_BODIES.$O.ZOHO_BODIES.M.*", nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	var seen jetstream.ObjectInfo
	if err := json.Unmarshal(msg.Data, &seen); err != nil || seen.Name != "acme/leads.json" || seen.Size != put.Size || seen.Digest != put.Digest {
		t.Errorf("globex sees %s, %v", msg.Data, err)
	}
	// Have the content sent to an org of its own: by a description with another name.
	seen.Name = "globex/copy"
	data, err := json.Marshal(seen)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := globex.Request("$O.ZOHO_BODIES.M."+base64.URLEncoding.EncodeToString([]byte(seen.Name)), data, patience); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, s.post(globex, "globex", "copy", "globex/copy"), 201)
	if got := s.lastNames("770000002"); got != "Secret of acme, of globex" {
		t.Errorf("globex's org has %s", got)
	}
	// Replace what another is about to have sent.
	putLarge(t, store, "acme/leads.json", "Forged")
	wantStatus(t, s.post(acme, "acme", "forged", "acme/leads.json"), 201)
	if got := s.lastNames("770000001"); got != "Forged, of acme" {
		t.Errorf("acme's org has %s", got)
	}
	// Remove one object, and by one header all of them.
	_ = store.Delete(t.Context(), "acme/leads.json") // the chunks stay: to purge is not exported
	wantCode(t, s.post(acme, "acme", "removed", "acme/leads.json"), envelope.InvalidRequest, "body_object: there is no such object")
	putLarge(t, theirs, "acme/more.json", "More")
	all := nats.NewMsg("$O.ZOHO_BODIES.C.x")
	all.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupAll)
	if _, err := globex.RequestMsg(all, patience); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.post(acme, "acme", "purged", "acme/more.json"), envelope.InvalidRequest, "body_object: there is no such object")
}

// A caller is added and taken away while the server runs, as docs/deploy.md says.
// Nobody else notices, and who is taken away is out at once.
func TestCallerComesAndGoes(t *testing.T) {
	t.Parallel()
	s := callersRig(t)
	s.rig.connect("initech", "770000002", 5)
	s.authority.issue("initech", x509.ExtKeyUsageClientAuth, "initech.zoho-worker")
	w := s.worker(s.as("worker"), unhurried)
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

// nodeOptions are those of a node of the shipped cluster, of which each listens on
// localhost, with the certificate node. Clients and other nodes have ports of their own.
func nodeOptions(t *testing.T, a *authority, name string, port int, routes [3]int) *server.Options {
	t.Helper()
	dir := t.TempDir()
	swap := func(file string, pairs ...string) {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		for i := 0; i < len(pairs); i += 2 {
			if !strings.Contains(text, pairs[i]) {
				t.Fatalf("%s has no %s", file, pairs[i])
			}
			text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	swap("../../deploy/nats/accounts.conf", `{ user: "backup.zoho-worker",`, `{ user: "test.zoho-worker" }
      { user: "backup.zoho-worker",`)
	pairs := []string{
		"$POD_NAME", name, "port: 4222", "port: -1", "port: 6222", fmt.Sprint("port: ", port), "http_port: 8222", "", "pid_file: /run/nats/nats.pid", "",
		"store_dir: /data", "store_dir: " + strconv.Quote(dir), "/etc/nats-tls/tls.crt", strconv.Quote(a.path("node.crt")),
		"/etc/nats-tls/tls.key", strconv.Quote(a.path("node.key")), "/etc/nats-tls/ca.crt", strconv.Quote(a.path("ca.crt")),
	}
	for i, route := range routes {
		pairs = append(pairs, fmt.Sprintf("nats-%d.nats-headless:6222", i), fmt.Sprint("localhost:", route))
	}
	swap("../../deploy/k8s/overlays/production/nats.conf", pairs...)
	options, err := server.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	options.Cluster.Host = "127.0.0.1"
	return options
}

// Callers in accounts of their own are served wherever in a cluster they, the streams
// and the worker are.
func TestCallersOfACluster(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	s := &secureRig{rig: r, authority: newAuthority(t), violations: &violations{}}
	s.authority.issue("node", x509.ExtKeyUsageAny, "localhost")
	for _, name := range []string{"worker", "acme", "globex", "test"} {
		s.authority.issue(name, x509.ExtKeyUsageClientAuth, name+".zoho-worker")
	}
	var ports [3]int
	for i := range ports {
		_, port, _ := net.SplitHostPort(freePort(t))
		ports[i], _ = strconv.Atoi(port)
	}
	var urls []string
	for i := range ports {
		node := natstest.Run(t, nodeOptions(t, s.authority, fmt.Sprint("nats-", i), ports[i], ports))
		urls = append(urls, fmt.Sprint("tls://localhost:", node.Addr().(*net.TCPAddr).Port))
	}
	as := func(user string) []nats.Option {
		return []nats.Option{
			nats.RootCAs(s.authority.path("ca.crt")), nats.ClientCert(s.authority.path(user+".crt"), s.authority.path(user+".key")),
		}
	}
	nc, err := nats.Connect(urls[0], as("test")...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cluster has a leader", func() bool {
		_, err := js.AccountInfo(t.Context())
		return err == nil
	})
	r.moveTo(urls[0], as("test")...)
	r.Zoho.AddOrg(zohotest.Org{ID: "770000001", Name: "Acme", Concurrency: 5})
	r.connect("acme", "770000001", 5)
	r.connect("globex", "770000001", 5)
	s.worker(s.as("worker"))
	for i, url := range urls {
		caller, err := nats.Connect(url, append(as("acme"), nats.CustomInboxPrefix("_INBOX.acme"))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(caller.Close)
		stored, err := caller.SubscribeSync("zoho.responses.acme.*")
		if err != nil {
			t.Fatal(err)
		}
		replies, err := caller.SubscribeSync(caller.NewInbox())
		if err != nil {
			t.Fatal(err)
		}
		// Word of a subscription takes a moment to the other nodes; there a reply is gone
		// for whom nobody listens yet.
		eventually(t, "the caller hears what comes from another node", func() bool {
			if err := r.nc.Publish(replies.Subject, []byte("there?")); err != nil {
				t.Fatal(err)
			}
			_, err := replies.NextMsg(100 * time.Millisecond)
			return err == nil
		})
		request := insert(fmt.Sprint("post-", i), "Posted")
		request["reply_to"] = replies.Subject
		acknowledged(t, caller, "zoho.requests.acme", request)
		eventually(t, "the reply comes", func() bool {
			msg, err := replies.NextMsg(patience)
			if err != nil {
				t.Fatalf("by node %d no reply: %v", i, err)
			}
			return string(msg.Data) != "there?" && responseIn(t, "reply", msg).Status == 201
		})
		wantStatus(t, answered(t, "stored response", stored), 201)
		msg, err := caller.Request("zoho.call.acme", fmt.Appendf(nil, `{"id":"call-%d","method":"GET","url":"/v8/Leads?fields=Last_Name"}`, i), patience)
		if err != nil {
			t.Fatalf("by node %d no answer: %v", i, err)
		}
		wantStatus(t, responseIn(t, "call", msg), 200)
		other, err := nats.Connect(url, as("globex")...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(other.Close)
		object := fmt.Sprint("globex/", i)
		putLarge(t, bodies(t, other), object, "Large")
		wantStatus(t, s.post(other, "globex", fmt.Sprint("large-", i), object), 201)
	}
}

// A route is for the nodes of the cluster: a caller's certificate, which is of the same
// authority, opens none. Whoever has one may say anything in any account.
func TestRoutesAreForNodes(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	a.issue("node", x509.ExtKeyUsageAny, "localhost")
	a.issue("acme", x509.ExtKeyUsageClientAuth, "acme.zoho-worker")
	// A cluster of which no other node is there.
	options := nodeOptions(t, a, "nats-0", -1, [3]int{1, 2, 3})
	options.Host, options.NoSigs = "127.0.0.1", true
	ns, err := server.NewServer(options)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	eventually(t, "there is a port for routes", func() bool { return ns.ClusterAddr() != nil })
	pem, err := os.ReadFile(a.path("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	authorities := x509.NewCertPool()
	authorities.AppendCertsFromPEM(pem)
	// knock comes as a node does, and returns what the server says to that.
	knock := func(name string) string {
		t.Helper()
		pair, err := tls.LoadX509KeyPair(a.path(name+".crt"), a.path(name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		conn, err := tls.Dial("tcp", ns.ClusterAddr().String(), &tls.Config{RootCAs: authorities, ServerName: "localhost", Certificates: []tls.Certificate{pair}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_ = conn.SetDeadline(time.Now().Add(patience))
		if _, err := fmt.Fprint(conn, "CONNECT {\"name\":\"intruder\",\"cluster\":\"zoho\",\"headers\":true}\r\nPING\r\n"); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			if line := lines.Text(); strings.HasPrefix(line, "PONG") || strings.HasPrefix(line, "-ERR") {
				return line
			}
		}
		return fmt.Sprint("gone: ", lines.Err())
	}
	if got := knock("node"); got != "PONG" {
		t.Errorf("a node is told %q", got)
	}
	if got := knock("acme"); !strings.Contains(got, "Authorization Violation") {
		t.Errorf("a caller is told %q", got)
	}
}
