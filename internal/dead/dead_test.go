package dead_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/register"
)

// opened are dead letters on a server of the test's own, and the requests that are
// published again.
func opened(t *testing.T) (jetstream.JetStream, *dead.Letters, func() []*jetstream.RawStreamMsg) {
	t.Helper()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, jetstream.StreamConfig{Name: dead.StreamName, Subjects: []string{"zoho.dead.>"}})
	server.Create(js, jetstream.StreamConfig{Name: "ZOHO_REQUESTS", Subjects: []string{"zoho.requests.>"}})
	letters, err := dead.Open(t.Context(), js)
	if err != nil {
		t.Fatal(err)
	}
	return js, letters, func() (published []*jetstream.RawStreamMsg) {
		stream, err := js.Stream(t.Context(), "ZOHO_REQUESTS")
		if err != nil {
			t.Fatal(err)
		}
		for sequence := range stream.CachedInfo().State.LastSeq {
			msg, err := stream.GetMsg(t.Context(), sequence+1)
			if err != nil {
				t.Fatal(err)
			}
			published = append(published, msg)
		}
		return published
	}
}

func bury(t *testing.T, js jetstream.JetStream, data []byte, header nats.Header) {
	t.Helper()
	msg := &nats.Msg{Subject: "zoho.dead.acme", Data: data, Header: nats.Header{
		dead.CodeHeader: {"invalid_request"}, dead.ReasonHeader: {"id: missing"}, dead.SubjectHeader: {"zoho.requests.acme"},
	}}
	for name, values := range header {
		msg.Header[name] = values
	}
	if _, err := js.PublishMsg(t.Context(), msg); err != nil {
		t.Fatal(err)
	}
}

// However large they are, letters that are picked take little memory, and what is
// replayed is whole all the same.
func TestPickedLettersAreSmall(t *testing.T) {
	t.Parallel()
	js, letters, published := opened(t)
	const number, size, headers = 24, 64 << 10, 60 << 10
	for i := range number {
		bury(t, js, bytes.Repeat([]byte{byte(i)}, size), nats.Header{"X-Large": {strings.Repeat("y", headers)}})
	}
	picked, _, err := letters.Pick(t.Context(), dead.Filter{}, number)
	if err != nil || len(picked) != number {
		t.Fatalf("%d letters, %v", len(picked), err)
	}
	held := 0
	for _, letter := range picked {
		held += len(letter.Data) + (&nats.Msg{Header: letter.Header}).Size()
	}
	if held > size {
		t.Errorf("%d letters of %d bytes hold %d bytes", number, size+headers, held)
	}
	if done, err := letters.Each(t.Context(), picked, 0, (*dead.Letters).Replay, func(int) {}); err != nil || done != number {
		t.Fatalf("%d replayed, %v", done, err)
	}
	again := published()
	if len(again) != number {
		t.Fatalf("%d are published again", len(again))
	}
	for i, msg := range again {
		if len(msg.Data) != size || msg.Data[0] != byte(i) || len(msg.Header.Get("X-Large")) != headers || len(msg.Header[dead.HistoryHeader]) == 0 {
			t.Fatalf("request %d: %d bytes, headers %d", i, len(msg.Data), len(msg.Header))
		}
	}
}

// Of a letter that somebody drops while others before it are replayed nothing is
// published.
func TestDroppedLetterIsNotReplayed(t *testing.T) {
	t.Parallel()
	js, letters, published := opened(t)
	for range 3 {
		bury(t, js, []byte("no JSON"), nil)
	}
	picked, _, err := letters.Pick(t.Context(), dead.Filter{}, 3)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := letters.Each(t.Context(), picked, 0, (*dead.Letters).Replay, func(done int) {
		if done == 1 {
			if err := letters.Drop(t.Context(), picked[1]); err != nil {
				t.Error(err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	if n := len(published()); n != 2 {
		t.Errorf("%d requests are published, want those of the two letters that were there", n)
	}
}

// A request with as many headers as the server stores is replayed without its past.
func TestReplayWithTheMostHeaders(t *testing.T) {
	t.Parallel()
	js, letters, published := opened(t)
	most := strings.Repeat("y", register.MaxHeader-400)
	bury(t, js, []byte("no JSON"), nats.Header{"X-Large": {most}})
	letter, err := letters.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := letters.Replay(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	if again := published(); len(again) != 1 || again[0].Header.Get("X-Large") != most {
		t.Errorf("published again: %d", len(again))
	}
}

// What a caller publishes under the id that a replay has is not taken for it.
func TestReplayIsNotMistaken(t *testing.T) {
	t.Parallel()
	js, letters, published := opened(t)
	bury(t, js, []byte("no JSON"), nil)
	if _, err := js.Publish(t.Context(), "zoho.requests.other", []byte("{}"), jetstream.WithMsgID("replay.1")); err != nil {
		t.Fatal(err)
	}
	letter, err := letters.Get(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := letters.Replay(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	if again := published(); len(again) != 2 || string(again[1].Data) != "no JSON" {
		t.Errorf("%d requests", len(again))
	}
}

// Two people who replay the same letters at once store each request once, and
// neither is told of an error.
func TestReplayedByTwo(t *testing.T) {
	t.Parallel()
	js, letters, published := opened(t)
	const number = 50
	for i := range number {
		bury(t, js, fmt.Appendf(nil, "no JSON %d", i), nil)
	}
	picked, _, err := letters.Pick(t.Context(), dead.Filter{}, 0)
	if err != nil || len(picked) != number {
		t.Fatalf("%d letters, %v", len(picked), err)
	}
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			if _, err := letters.Each(t.Context(), picked, 0, (*dead.Letters).Replay, func(int) {}); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if n := len(published()); n != number {
		t.Errorf("%d requests of %d letters", n, number)
	}
}

// What is replayed is the request as its caller published it: nothing that the server
// would act on, and nothing of the letter. It goes to where requests are, or nowhere.
func TestReplayIsTheRequest(t *testing.T) {
	t.Parallel()
	js, letters, requests := opened(t)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ZOHO_CONNECTIONS", Subjects: []string{"zoho.connections.*"}}); err != nil {
		t.Fatal(err)
	}
	bury(t, js, []byte("good"), nats.Header{
		"X-Caller": {"billing"}, dead.OriginalPrefix + "Nats-Rollup": {"all"}, jetstream.ExpectedStreamHeader: {dead.StreamName}, dead.StoredHeader: {"x"},
	})
	for _, subject := range []string{"zoho.connections.acme", "$JS.API.STREAM.DELETE.ZOHO_REQUESTS", "zoho.requests", ""} {
		bury(t, js, []byte("stray"), nats.Header{dead.SubjectHeader: {subject}})
	}
	picked, _, err := letters.Pick(t.Context(), dead.Filter{}, 0)
	if err != nil || len(picked) != 5 {
		t.Fatalf("%d letters: %v", len(picked), err)
	}
	for i, letter := range picked {
		if err := letters.Replay(t.Context(), letter); (err != nil) != (i > 0) {
			t.Errorf("letter %d, of %q: %v", letter.Sequence, letter.Subject, err)
		}
	}
	published := requests()
	if len(published) != 1 || string(published[0].Data) != "good" {
		t.Fatalf("%d requests", len(published))
	}
	for name := range published[0].Header {
		if !slices.Contains([]string{"X-Caller", dead.HistoryHeader, jetstream.MsgIDHeader}, name) {
			t.Errorf("it has the header %s", name)
		}
	}
	if left, _, err := letters.Pick(t.Context(), dead.Filter{}, 0); err != nil || len(left) != 4 {
		t.Errorf("%d letters are left: %v", len(left), err)
	}
}

// Each part of a filter picks, and all of them together.
func TestFilter(t *testing.T) {
	t.Parallel()
	js, letters, _ := opened(t)
	for _, code := range []string{"internal", "invalid_request", "internal", "id_conflict", "internal"} {
		bury(t, js, nil, nats.Header{dead.CodeHeader: {code}})
	}
	third, err := letters.Get(t.Context(), 3)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		filter dead.Filter
		most   int
		want   []uint64
		more   bool
	}{
		{dead.Filter{}, 0, []uint64{1, 2, 3, 4, 5}, false},
		{dead.Filter{}, 5, []uint64{1, 2, 3, 4, 5}, false},
		{dead.Filter{}, 4, []uint64{1, 2, 3, 4}, true},
		{dead.Filter{After: 2}, 0, []uint64{3, 4, 5}, false},
		{dead.Filter{Until: 4}, 0, []uint64{1, 2, 3, 4}, false},
		{dead.Filter{Until: 99}, 0, []uint64{1, 2, 3, 4, 5}, false},
		{dead.Filter{Before: third.Buried}, 0, []uint64{1, 2}, false},
		{dead.Filter{Code: "internal"}, 1, []uint64{1}, true},
		{dead.Filter{Code: "internal", After: 1, Until: 4}, 1, []uint64{3}, false},
		{dead.Filter{Connection: "globex"}, 0, nil, false},
		{dead.Filter{Connection: "acme", After: 5}, 0, nil, false},
	} {
		picked, more, err := letters.Pick(t.Context(), test.filter, test.most)
		var got []uint64
		for _, letter := range picked {
			got = append(got, letter.Sequence)
		}
		if err != nil || !slices.Equal(got, test.want) || more != test.more {
			t.Errorf("%+v, at most %d: %d, more %v, %v", test.filter, test.most, got, more, err)
		}
	}
	if err := letters.Drop(t.Context(), &dead.Letter{Sequence: 4}); err != nil {
		t.Fatal(err)
	}
	if picked, _, err := letters.Pick(t.Context(), dead.Filter{Until: 4}, 0); err != nil || len(picked) != 3 {
		t.Errorf("up to a letter that is gone there are %d: %v", len(picked), err)
	}
}
