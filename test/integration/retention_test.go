package integration

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/zoho/zohotest"
)

// F44: an id is remembered for as long as its response and its claim are kept.
// After that it is a new request, as docs/envelope.md says.
func TestIDAfterRetention(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	r.worker()
	// The configuration has a day at least; the streams are told less.
	short := func(age time.Duration) {
		t.Helper()
		for _, name := range []string{consumer.ResponseStream, ledger.StreamName} {
			stream, err := r.js.Stream(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			config := stream.CachedInfo().Config
			config.MaxAge, config.Duplicates = age, min(config.Duplicates, age)
			if _, err := r.js.UpdateStream(t.Context(), config); err != nil {
				t.Fatal(err)
			}
		}
	}
	again := func(want int) {
		t.Helper()
		wantStatus(t, r.call("demo", insert("same", "Same")), 201)
		r.drained()
		if n := r.executed()["Same"]; n != want {
			t.Errorf("executed %d times, want %d", n, want)
		}
	}
	again(1)
	again(1) // remembered
	short(time.Second)
	eventually(t, "the response and the claim are gone", func() bool {
		return r.messages(consumer.ResponseStream) == 0 && r.messages(ledger.StreamName) == 0
	})
	short(time.Hour)
	again(2) // forgotten
	again(2) // and remembered anew
}

// messages is how many the stream holds.
func (r *rig) messages(name string) uint64 {
	r.t.Helper()
	stream, err := r.js.Stream(r.t.Context(), name)
	if err != nil {
		r.t.Fatal(err)
	}
	info, err := stream.Info(r.t.Context(), jetstream.WithSubjectFilter(">"))
	if err != nil {
		r.t.Fatal(err)
	}
	return info.State.Msgs
}

// A response that somebody else stored, without a digest or with one that is none, keeps its id.
func TestResponseWithoutDigest(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	for i, digest := range []string{"", "00", "x", strings.Repeat("00", 33)} {
		id := fmt.Sprint("r", i)
		msg := &nats.Msg{Subject: consumer.ResponseSubject("demo", id), Data: []byte("{}"), Header: nats.Header{"Zoho-Digest": {digest}}}
		if _, err := r.js.PublishMsg(t.Context(), msg); err != nil {
			t.Fatal(err)
		}
		inbox := r.nc.NewInbox()
		replies, err := r.nc.SubscribeSync(inbox)
		if err != nil {
			t.Fatal(err)
		}
		r.publish("demo", doc{
			"id": id, "method": "PUT", "url": "/v8/Leads", "body": doc{"data": []doc{{"id": "1", "Last_Name": "Nobody"}}}, "reply_to": inbox,
		})
		if i == 0 {
			r.worker()
		}
		reply, err := replies.NextMsg(patience)
		if err != nil {
			t.Fatalf("%q: %v", digest, err)
		}
		response, err := envelope.DecodeResponse(reply.Data)
		if err != nil {
			t.Fatal(err)
		}
		wantCode(t, response, envelope.IDConflict)
	}
}
