package secret_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"zoho-worker/internal/secret"
)

func TestTextIsAString(t *testing.T) {
	t.Parallel()
	for _, value := range []string{"", "a", "ä b"} {
		text := secret.New(value)
		if text.Reveal() != value || text.IsZero() != (value == "") || text != secret.New(value) || text == secret.New(value+"x") {
			t.Errorf("%q", value)
		}
	}
	var zero secret.Text
	if zero.Reveal() != "" || zero != secret.New("") {
		t.Error("zero")
	}
}

func TestTextDoesNotPrint(t *testing.T) {
	t.Parallel()
	type config struct{ hidden, Shown secret.Text }
	text := secret.New("PLANTED")
	values := []any{text, &text, config{text, text}, &config{text, text}, []secret.Text{text}, map[string]secret.Text{"a": text}}
	for _, value := range values {
		for _, verb := range strings.Split("v +v #v s q x X d t c U e o b p w z T", " ") {
			shows(t, verb, fmt.Sprintf("%"+verb, value))
			shows(t, verb+" of an error", fmt.Errorf("%"+verb, value).Error())
		}
		var log strings.Builder
		slog.New(slog.NewJSONHandler(&log, nil)).Info("json", "value", value)
		slog.New(slog.NewTextHandler(&log, nil)).Info("text", "value", value)
		shows(t, "log", log.String())
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		shows(t, "json", string(encoded))
	}
	if s := fmt.Sprintf("%v %d %q", text, text, &text); s != "redacted redacted redacted" {
		t.Error(s)
	}
}

func shows(t *testing.T, where, s string) {
	t.Helper()
	if strings.Contains(s, "PLANTED") || strings.Contains(strings.ToLower(s), fmt.Sprintf("%x", "PLANTED")) {
		t.Errorf("%s: %s", where, s)
	}
}
