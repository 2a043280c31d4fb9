package integration

import (
	"testing"
	"time"

	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
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
	if got := all(dead.Filter{Connection: "stranger"}); len(got) != 1 || string(got[0].Data) != "no JSON either" {
		t.Fatalf("filter by connection: %v", got)
	}
	if got := all(dead.Filter{OlderThan: time.Hour}); len(got) != 0 {
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
