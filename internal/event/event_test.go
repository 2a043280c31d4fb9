package event_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/event"
)

// A pause is told as docs/envelope.md shows it: whoever listens has nothing else to go by.
func TestPauseIsToldAsDocumented(t *testing.T) {
	t.Parallel()
	data, err := json.Marshal(event.Event{
		Event: "paused", Connection: "acme", At: time.Date(2026, 1, 31, 15, 4, 5, 123e6, time.UTC),
		Queue: "org-eu-production-20078233816", Until: time.Date(2026, 1, 31, 15, 4, 9, 5e8, time.UTC),
		Cause: "429 TOO_MANY_REQUESTS", For: "concurrency",
	})
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/envelope.md")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.NewReplacer(`":"`, `": "`, `","`, `", "`).Replace(string(data))
	if !strings.Contains(string(page), want) {
		t.Errorf("not in docs/envelope.md: %s", want)
	}
}
