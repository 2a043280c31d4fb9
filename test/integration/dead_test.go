package integration

import (
	"fmt"
	"slices"
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
		"published to zoho.requests.demo", fmt.Sprintf("set aside as dead letter %d, id_conflict", got[0].Sequence), "replayed",
		"published to zoho.requests.demo", fmt.Sprintf("set aside as dead letter %d, id_conflict", again.Sequence),
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
