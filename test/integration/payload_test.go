package integration

import (
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho/zohotest"
)

// A server that begins anew with a smaller max_payload has requests and responses in
// its streams that are larger than a message may be now. Requests are answered and leave
// the stream, and who can't be sent a stored response any more is told where it is.
func TestSmallerMaxPayload(t *testing.T) {
	t.Parallel()
	const before, now = 1 << 20, 256 << 10
	r := newRig(t, zohotest.Options{})
	options := func(maxPayload int32) *server.Options {
		return &server.Options{JetStream: true, StoreDir: r.DataDir + "/other", MaxPayload: maxPayload}
	}
	first := natstest.Run(t, options(before))
	r.moveTo(first.ClientURL())
	r.demo(5)
	padding := strings.Repeat("x", 600<<10)
	large := func(id string) doc {
		d := insert(id, id)
		d["body"] = doc{"data": []doc{{"Last_Name": id, "Description": padding}}}
		return d
	}
	r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Large", "Description": padding})
	whole := doc{"id": "whole", "method": "POST", "url": "/v8/coql", "body": doc{"select_query": "select Last_Name, Description from Leads where Last_Name = 'Large' limit 1"}}
	w := r.worker()
	r.publish("demo", whole)
	wantStatus(t, r.await("demo", "whole"), 200)
	r.drained()
	stop(w)
	r.publish("demo", large("large"))
	r.publishRaw("demo", []byte(`{"no":"id",`+padding))

	first.Shutdown()
	first.WaitForShutdown()
	second := natstest.Run(t, options(now))
	r.moveTo(second.ClientURL())
	r.worker()
	wantCode(t, r.await("demo", "large"), envelope.TooLarge)
	response := r.call("demo", whole)
	wantCode(t, response, envelope.TooLarge, consumer.ResponseSubject("demo", "whole"))
	// What nobody can be answered for, and no message can hold any more, stays.
	eventually(t, "all else is off the stream", func() bool { return r.backlog() == 1 })
	if n := r.Zoho.Count(zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"}); n != 0 {
		t.Errorf("%d POSTs", n)
	}
}
