package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho"
	"zoho-worker/internal/zoho/zohotest"
)

// A dead letter is whole, is found by filter, is answered when it is replayed
// with what it lacked, and is gone when it is dropped.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	letters, err := dead.Open(t.Context(), r.js)
	if err != nil {
		t.Fatal(err)
	}
	all := func(f dead.Filter) (found []*dead.Letter) {
		t.Helper()
		for letter, err := range letters.All(t.Context(), f) {
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, letter)
		}
		return found
	}
	r.publishRaw("demo", []byte("no JSON"))
	// A conflicting id without a reply_to: nobody can be answered.
	wantStatus(t, r.call("demo", insert("taken", "First")), 201)
	conflict := insert("taken", "Second")
	r.publish("demo", conflict)
	r.publishRaw("stranger", []byte("no JSON either"))
	eventually(t, "three dead letters", func() bool { return len(all(dead.Filter{})) == 3 })
	stranger := all(dead.Filter{Connection: "stranger"})
	if len(stranger) != 1 || string(stranger[0].Data) != "no JSON either" {
		t.Fatalf("filter by connection: %v", stranger)
	}
	// Nobody serves such a connection: its requests are not handed over.
	if h := stranger[0].History(); len(h) != 3 || h[1].What != "read out of the stream by "+self() {
		t.Errorf("history %v", h)
	}
	if got := all(dead.Filter{Before: time.Now().Add(-time.Hour)}); len(got) != 0 {
		t.Fatalf("filter by age: %v", got)
	}
	got := all(dead.Filter{Code: string(envelope.IDConflict)})
	if len(got) != 1 || got[0].Subject != "zoho.requests.demo" || got[0].Received.IsZero() {
		t.Fatalf("filter by code: %v", got)
	}
	// Replayed as it is, it conflicts again: one letter, not two.
	if err := letters.Replay(t.Context(), got[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the conflict is buried again", func() bool {
		again := all(dead.Filter{Code: string(envelope.IDConflict)})
		return len(again) == 1 && again[0].Sequence != got[0].Sequence
	})
	// Its history tells of the first time, too.
	again := all(dead.Filter{Code: string(envelope.IDConflict)})[0]
	var history []string
	for _, e := range again.History() {
		history = append(history, e.What)
	}
	want := []string{
		"published to zoho.requests.demo", "in hand of " + self() + ", delivery 1", fmt.Sprintf("set aside as dead letter %d, id_conflict", got[0].Sequence), "replayed",
		"published to zoho.requests.demo", "in hand of " + self() + ", delivery 1", fmt.Sprintf("set aside as dead letter %d, id_conflict", again.Sequence),
	}
	if !slices.Equal(history, want) {
		t.Errorf("history %q, want %q", history, want)
	}
	if names, _ := again.Own(); slices.Contains(names, dead.HistoryHeader) || slices.Contains(names, dead.CodeHeader) {
		t.Errorf("its own headers are %q", names)
	}
	if picked, more, err := letters.Pick(t.Context(), dead.Filter{Until: again.Sequence - 1}, 1); err != nil || len(picked) != 1 || !more {
		t.Errorf("picked %d, more %v, %v", len(picked), more, err)
	}
	if picked, more, err := letters.Pick(t.Context(), dead.Filter{After: again.Sequence - 1}, 1); err != nil || len(picked) != 1 || more || picked[0].Sequence != again.Sequence {
		t.Errorf("picked %d, more %v, %v", len(picked), more, err)
	}
	for _, letter := range all(dead.Filter{}) {
		if err := letters.Drop(t.Context(), letter); err != nil {
			t.Fatal(err)
		}
	}
	if left := all(dead.Filter{}); len(left) != 0 {
		t.Fatalf("%d letters are left", len(left))
	}
	if n := r.executed(); n["First"] != 1 || n["Second"] != 0 {
		t.Fatalf("executed %v", n)
	}
}

// A request says when it was stored only where the worker moved it. A header of a
// caller's is none of its business, and a letter of one that was moved days ago is
// a request of today once it is replayed.
func TestStoredHeader(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	old := time.Now().Add(-48 * time.Hour).UTC().Format(time.RFC3339Nano)
	publish := func(subject, id string, header nats.Header) {
		t.Helper()
		header.Set("Zoho-Stored", old)
		data := fmt.Appendf(nil, `{"id":%q,"method":"GET","url":"/v8/Leads?fields=Last_Name"}`, id)
		if _, err := r.js.PublishMsg(t.Context(), &nats.Msg{Subject: subject, Data: data, Header: header}); err != nil {
			t.Fatal(err)
		}
	}
	publish("zoho.requests.demo", "own", nats.Header{})
	wantStatus(t, r.await("demo", "own"), 200)
	publish("zoho.requests.demo.bulk", "bulk", nats.Header{})
	wantStatus(t, r.await("demo", "bulk"), 200)
	publish("zoho.requests.demo.heavy", "moved", nats.Header{})
	if e := r.await("demo", "moved").Error; e == nil || e.Code != envelope.DeadlineExceeded {
		t.Errorf("moved two days ago: %+v", e)
	}
	publish("zoho.dead.demo", "replayed", nats.Header{
		dead.CodeHeader: {string(envelope.Internal)}, dead.SubjectHeader: {"zoho.requests.demo.heavy"}, dead.ReceivedHeader: {old},
	})
	letters, err := dead.Open(t.Context(), r.js)
	if err != nil {
		t.Fatal(err)
	}
	if err := letters.Replay(t.Context(), r.letter()); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, r.await("demo", "replayed"), 200)
}

// self is how a dead letter names a worker of this process.
func self() string {
	host, _ := os.Hostname()
	return fmt.Sprintf("worker %s (pid %d)", host, os.Getpid())
}

// letter waits for the only dead letter.
func (r *rig) letter() *dead.Letter {
	r.t.Helper()
	letters, err := dead.Open(r.t.Context(), r.js)
	if err != nil {
		r.t.Fatal(err)
	}
	var picked []*dead.Letter
	eventually(r.t, "a dead letter", func() bool {
		picked, _, err = letters.Pick(r.t.Context(), dead.Filter{}, 2)
		return err == nil && len(picked) > 0
	})
	if len(picked) != 1 {
		r.t.Fatalf("%d dead letters", len(picked))
	}
	letter, err := letters.Get(r.t.Context(), picked[0].Sequence)
	if err != nil {
		r.t.Fatal(err)
	}
	return letter
}

// Two updates of one id overtake each other: the one that Zoho carried out second
// can't be answered, and its letter tells each call that was made for it.
func TestDeadLetterTellsItsCalls(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	r.worker()
	id := r.Zoho.Records("770000001", "Leads")[0]["id"]
	update := func(company string) doc {
		return doc{"id": "twice", "method": "PUT", "url": "/v8/Leads", "headers": doc{"X-Test": company}, "body": doc{"data": []doc{{"id": id, "Company": company}}}}
	}
	of := func(company string) zohotest.Match {
		return zohotest.Match{Method: "PUT", Where: func(c zohotest.Call) bool { return c.Header.Get("X-Test") == company }}
	}
	for _, fault := range []zohotest.Fault{zohotest.CutRead(zohotest.Reset), zohotest.Maintenance(), zohotest.InternalError()} {
		fault.Match = of("Slow")
		r.Zoho.Inject(fault)
	}
	hold := r.Zoho.Hold(zohotest.Executed, of("Slow"))
	r.publish("demo", update("Slow"))
	<-hold.Reached()
	r.publish("demo", update("Quick"))
	wantStatus(t, r.await("demo", "twice"), 200)
	hold.Release()
	letter := r.letter()
	if letter.Code != string(envelope.IDConflict) || !strings.Contains(string(letter.Data), "Slow") {
		t.Fatalf("%s: %s", letter.Code, letter.Data)
	}
	history := letter.History()
	want := []string{
		"published to zoho.requests.demo", "in hand of " + self() + ", delivery 1",
		"sent to Zoho, no answer came", "sent to Zoho, which answered 503", "sent to Zoho, which answered 500 INTERNAL_ERROR",
		"sent to Zoho, which answered 200",
		fmt.Sprintf("set aside as dead letter %d, id_conflict", letter.Sequence),
	}
	for i, e := range history {
		if i >= len(want) || !strings.HasPrefix(e.What, want[i]) {
			t.Fatalf("history %v, want %q", history, want)
		}
		// The lines are told to the second.
		if i > 0 && e.At.Before(history[i-1].At.Truncate(time.Second)) {
			t.Errorf("%v comes after %v", e, history[i-1])
		}
	}
	if len(history) != len(want) {
		t.Fatalf("history %v, want %q", history, want)
	}
	if n := r.Zoho.Count(of("Slow")); n != 4 {
		t.Errorf("the simulator saw %d calls", n)
	}
}

// What the stream takes a dead letter can hold, headers or not: nothing that is
// published comes again for ever, or troubles the worker.
func TestLargestDeadLetter(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	w := r.worker()
	most := int(r.nc.MaxPayload())
	if _, err := r.js.Publish(t.Context(), "zoho.requests.demo", make([]byte, most)); !register.IsTooLarge(err) {
		t.Fatalf("a message without room for a letter's headers: %v", err)
	}
	// A caller is told so in its own words.
	const around = `{"id":"large","method":"POST","url":"/v8/Leads","body_text":"%s"}`
	for _, less := range []int{len(around) - 2, 500, 500} { // with the caller's inbox no message holds the first
		msg, err := r.nc.Request("zoho.call.demo", fmt.Appendf(nil, around, strings.Repeat("x", most-less)), patience)
		if err != nil {
			t.Fatal(err)
		}
		response, err := envelope.DecodeResponse(msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, response, envelope.TooLarge, "ZOHO_BODIES")
	}
	stream, err := r.js.Stream(t.Context(), "ZOHO_REQUESTS")
	if err != nil {
		t.Fatal(err)
	}
	header := nats.Header{}
	for i := range 2000 { // each grows by what says that it is the request's own
		header.Set(fmt.Sprintf("Nats-X%d", i), "y")
	}
	room := int(stream.CachedInfo().Config.MaxMsgSize)
	bare := bytes.Repeat([]byte("x"), room)
	laden := bytes.Repeat([]byte("y"), room-register.HeaderSize(header))
	crowded := nats.Header{"Nats-X0": {strings.Repeat("z", register.MaxHeader-50)}} // as many as a stream takes
	for _, m := range []*nats.Msg{{Data: bare}, {Data: laden, Header: header}, {Data: []byte("no JSON"), Header: crowded}} {
		m.Subject = "zoho.requests.demo"
		if _, err := r.js.PublishMsg(t.Context(), m); err != nil {
			t.Fatal(err)
		}
		letter := r.letter()
		last := letter.History()
		if !bytes.Equal(letter.Data, m.Data) || letter.Code != string(envelope.InvalidRequest) {
			t.Fatalf("%s, %d bytes of %d", letter.Code, len(letter.Data), len(m.Data))
		}
		_, own := letter.Own()
		if left := own["Original-Nats-X0"] == nil; m.Header != nil && (!left || !strings.Contains(last[2].What, "did not fit")) {
			t.Errorf("headers %d, history %v", len(own), last)
		}
		// Sent again it is a letter again, with its past or without it.
		letters, err := dead.Open(t.Context(), r.js)
		if err != nil {
			t.Fatal(err)
		}
		if err := letters.Replay(t.Context(), letter); err != nil {
			t.Fatal(err)
		}
		again := r.letter()
		if again.Sequence == letter.Sequence || !bytes.Equal(again.Data, m.Data) {
			t.Errorf("letter %d after %d", again.Sequence, letter.Sequence)
		}
		if err := letters.Drop(t.Context(), again); err != nil {
			t.Fatal(err)
		}
	}
	ready, err := http.Get("http://" + w.HTTPAddr + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(ready.Body)
	_ = ready.Body.Close()
	if ready.StatusCode != 200 {
		t.Errorf("not ready: %s", body)
	}
	r.drained()
}

// panics is a relay that fails after it has called Zoho.
type panics struct{}

func (panics) Do(_ context.Context, d *relay.Delivery) relay.Result {
	for range 12 { // more than a letter tells
		d.Observer.Attempted(&zoho.Answer{Status: 200, CreditsRemaining: -1}, time.Now(), 1)
	}
	d.Observer.Attempted(&zoho.Answer{Unsent: true, CreditsRemaining: -1}, time.Now(), 0)
	panic("a fault of the worker")
}

// noTokens is a token source that nobody asks.
type noTokens struct{}

func (noTokens) Look(string) token.View    { return token.View{} }
func (noTokens) Watch(func(string)) func() { return func() {} }

// A request that makes a worker panic is answered so, once, and set aside with
// the last calls that were made for it.
func TestPanicIsSetAside(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	clock := &register.Clock{}
	c := consumer.New(consumer.Options{
		Conn: r.nc, JetStream: r.js, Stream: r.requests(), Relay: panics{}, Connections: r.store, Tokens: noTokens{}, Responses: consumer.NewResponses(r.js),
		Ledger: ledger.Open(r.js, clock, 5*time.Second), Clock: clock, Decoder: &envelope.Decoder{}, MaxInFlight: 10, Version: "0.0.0", Logger: r.logs.logger(),
	})
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Stop(context.Background()) })
	r.publish("demo", insert("bad", "Bad"))
	wantCode(t, r.await("demo", "bad"), envelope.Internal, "not known")
	r.drained()
	letter := r.letter()
	var history []string
	for _, e := range letter.History() {
		history = append(history, e.What)
	}
	want := []string{"published to zoho.requests.demo", "in hand of " + self() + ", delivery 1", "3 calls of Zoho before this"}
	for range 9 {
		want = append(want, "sent to Zoho, which answered 200")
	}
	want = append(want, "not sent to Zoho: no connection", fmt.Sprintf("set aside as dead letter %d, internal", letter.Sequence))
	if !slices.Equal(history, want) || !bytes.Contains(letter.Data, []byte(`"bad"`)) {
		t.Errorf("history %q, want %q of %s", history, want, letter.Data)
	}
}
