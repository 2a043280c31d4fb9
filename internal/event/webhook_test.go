package event_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/event"
)

var stream = jetstream.StreamConfig{Name: event.StreamName, Subjects: []string{"zoho.events.*"}}

// posts starts a webhook and hands over what it posts.
func posts(t *testing.T, js jetstream.JetStream) <-chan string {
	t.Helper()
	posted := make(chan string, 100)
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		posted <- r.Header.Get("Zoho-Event")
	}))
	t.Cleanup(receiver.Close)
	hook := &event.Webhook{JS: js, URL: receiver.URL, Logger: slog.New(slog.DiscardHandler), First: 10 * time.Millisecond}
	stop, err := hook.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return posted
}

// untilPosted publishes the event until it is posted: one that comes before there is
// a consumer is nobody's.
func untilPosted(t *testing.T, js jetstream.JetStream, posted <-chan string, name string) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < 30*time.Second; {
		if _, err := js.Publish(t.Context(), "zoho.events.acme", []byte(`{"event":"`+name+`","connection":"acme"}`)); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-posted:
			if got == name {
				return
			}
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatalf("%s is not posted", name)
}

// A webhook whose consumer somebody deletes, or whose stream, gets itself another.
func TestWebhookOutlivesItsConsumer(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, stream)
	posted := posts(t, js)
	untilPosted(t, js, posted, "connected")
	if err := js.DeleteConsumer(t.Context(), event.StreamName, "webhook"); err != nil {
		t.Fatal(err)
	}
	untilPosted(t, js, posted, "revoked")
	if err := js.DeleteStream(t.Context(), event.StreamName); err != nil {
		t.Fatal(err)
	}
	server.Create(js, stream)
	untilPosted(t, js, posted, "recovered")
}

// Why a receiver can't be told is in the log; what is secret of its address is not.
func TestWebhookSaysWhy(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, stream)
	gone := httptest.NewServer(nil)
	address := strings.TrimPrefix(gone.URL, "http://")
	gone.Close()
	log := make(lines, 100)
	hook := &event.Webhook{
		JS: js, URL: "http://user:hunter2@" + address + "/hook/s3cret?key=s3cret", Logger: slog.New(slog.NewJSONHandler(log, nil)), First: time.Millisecond,
	}
	stop, err := hook.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if _, err := js.Publish(t.Context(), "zoho.events.acme", []byte(`{"event":"connected","connection":"acme"}`)); err != nil {
		t.Fatal(err)
	}
	said := ""
	for !strings.Contains(said, "webhook not told") {
		select {
		case line := <-log:
			said += line
		case <-time.After(30 * time.Second):
			t.Fatalf("the log does not say that it was not told: %s", said)
		}
	}
	if !strings.Contains(said, "connection refused") {
		t.Errorf("the log does not say why: %s", said)
	}
	for _, hidden := range []string{"hunter2", "s3cret"} {
		if strings.Contains(said, hidden) {
			t.Errorf("the log shows %q: %s", hidden, said)
		}
	}
}

// lines is what was logged so far.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default: // nobody reads so many
	}
	return len(b), nil
}
