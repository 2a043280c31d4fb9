// Package secret keeps secrets from showing: Text is a string that prints as
// "redacted", and Keyring seals bytes for storage.
//
// It is not a vault: whoever holds the process's memory holds the secrets.
//
// Invariants: no fmt verb, logger or encoder of the standard library prints a
// Text, nor a struct that has one; what a Keyring sealed for one owner never opens
// for another.
package secret

import (
	"fmt"
	"io"
	"log/slog"
	"unique"
)

const redacted = "redacted"

// Text is a string that no log line, error or document may show. Reveal is the
// only way to read it, so that every place that does can be found. Texts of the same
// string are equal; the zero Text is that of the empty string.
type Text struct {
	// Behind a pointer: package fmt asks no method about a struct's unexported
	// field, nor for %p and a misplaced %w, and shows what is there.
	value unique.Handle[string]
}

// New wraps value.
func New(value string) Text {
	if value == "" {
		return Text{}
	}
	return Text{unique.Make(value)}
}

// Reveal returns the secret itself.
func (t Text) Reveal() string {
	if t.IsZero() {
		return ""
	}
	return t.value.Value()
}

// IsZero reports whether there is no secret.
func (t Text) IsZero() bool { return t == Text{} }

// String implements fmt.Stringer with a fixed word.
func (t Text) String() string { return redacted }

// Format implements fmt.Formatter with a fixed word, whatever the verb.
func (t Text) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// MarshalText implements encoding.TextMarshaler with a fixed word.
func (t Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer with a fixed word.
func (t Text) LogValue() slog.Value { return slog.StringValue(redacted) }
