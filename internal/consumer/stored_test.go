package consumer

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/register"
	"zoho-worker/internal/register/storedtest"
)

// What an org's record carries outlives its worker, and its version.
func TestStoredForms(t *testing.T) {
	t.Parallel()
	at := func(minute int) time.Time { return time.Date(2026, 11, 27, 12, minute, 0, 500_000_000, time.UTC) }
	storedtest.Form(t, "state", state{
		State: flow.State{
			Limit: 7, HeavyLimit: 4,
			Pause:      &flow.Pause{Until: at(1), Cause: "429 TOO_MANY_REQUESTS", For: flow.Concurrency},
			HeavyPause: &flow.Pause{Until: at(2), Cause: "429 TOO_MANY_REQUESTS", For: flow.SubConcurrency},
			Hand:       &flow.Pause{Until: at(3), Cause: "by hand", For: flow.Credits},
			Used:       flow.Usage{First: 1994640, Counts: []int{120, 7}},
			Callers:    map[string]*flow.Usage{"reports": {First: 1994641, Counts: []int{7}}},
			Left:       40_000, Known: at(4),
		},
		Resumed: at(5), Deaths: map[string]uint64{"acme": 4711, "acme.bulk": 4700}, Trial: 4690, Accused: []uint64{4690, 4691}, Running: 2,
	})
}

// The names by which one version finds what another has stored.
func TestStoredNames(t *testing.T) {
	t.Parallel()
	for got, want := range map[string]string{
		digestHeader: "Zoho-Digest", register.NonceHeader: "Zoho-Nonce", dead.StoredHeader: "Zoho-Stored", dead.HistoryHeader: "Zoho-History",
		dead.CodeHeader: "Zoho-Dead-Code", dead.ReasonHeader: "Zoho-Dead-Reason", dead.SubjectHeader: "Zoho-Dead-Subject",
		dead.ReceivedHeader: "Zoho-Dead-Received", dead.LifeHeader: "Zoho-Dead-Life", dead.OriginalPrefix: "Original-",
		ResponseSubject("acme", "1"): "zoho.responses.acme.1",
	} {
		if got != want {
			t.Errorf("%s was %s", got, want)
		}
	}
	for lane, want := range map[Lane][2]string{
		Interactive: {"zoho.requests.acme", "acme"}, Bulk: {"zoho.requests.acme.bulk", "acme~bulk"},
		heavyLane: {"zoho.requests.acme.heavy", "acme~heavy"}, heavyBulk: {"zoho.requests.acme.bulk.heavy", "acme~bulk~heavy"},
	} {
		k := laneKey{"acme", lane}
		if got := [2]string{k.subject(), k.durable()}; got != want {
			t.Errorf("the lane %q is %q, and was %q", lane, got, want)
		}
	}
}

// Streams are what the version makes of them that was started last: an older one that
// is started again makes them anew as well. So the server takes the one form for the
// other and back, and an update takes nothing away that is in them.
func TestStreamsOfAnotherVersion(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	js := s.JetStream()
	file, err := os.ReadFile("testdata/stored/streams.json")
	if err != nil {
		t.Fatal(err)
	}
	var older []jetstream.StreamConfig
	if err := json.Unmarshal(file, &older); err != nil {
		t.Fatal(err)
	}
	topology := Topology{Replicas: 1, Retention: 24 * time.Hour}
	ctx := t.Context()
	for _, turn := range []string{"made by the older one", "rolled over", "rolled back", "rolled over again"} {
		if strings.HasPrefix(turn, "rolled over") {
			if err := topology.Ensure(ctx, js); err != nil {
				t.Fatalf("%s: %v", turn, err)
			}
			continue
		}
		for _, config := range older {
			if _, err := js.CreateOrUpdateStream(ctx, config); err != nil {
				t.Fatalf("%s: stream %s: %v", turn, config.Name, err)
			}
		}
		// One message of each kind is there at the end as well.
		for _, subject := range subjects {
			if _, err := js.Publish(ctx, subject+turn[:1], []byte(`{}`)); err != nil {
				t.Fatalf("%s: publish to %s: %v", turn, subject, err)
			}
		}
	}
	for _, subject := range subjects {
		name, err := js.StreamNameBySubject(ctx, subject+"m")
		if err != nil {
			t.Errorf("%s: %v", subject, err)
			continue
		}
		stream, err := js.Stream(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.GetLastMsgForSubject(ctx, subject+"m"); err != nil {
			t.Errorf("what the older version stored at %s: %v", subject, err)
		}
	}
}

// subjects of what workers store, without their ends.
var subjects = []string{
	"zoho.requests.", "zoho.requests.acme.bulk.heavy.", "zoho.responses.acme.", "zoho.claims.acme.", "zoho.tokens.", "zoho.connections.",
	"zoho.identities.eu.production.1.", "zoho.consents.state.", "zoho.consents.share.", "zoho.consents.check.", "zoho.queues.org-",
	"zoho.workers.", "zoho.dead.", "zoho.events.",
}
