// Package secret keeps secrets from showing: Text is a string that prints as
// "redacted", and Keyring seals bytes for storage.
//
// It is not a vault: whoever holds the process's memory holds the secrets.
//
// Invariants: no fmt verb, logger or encoder of the standard library prints a
// Text; what a Keyring sealed for one owner never opens for another.
package secret

import "log/slog"

const redacted = "redacted"

// Text is a string that no log line, error or document may show. Reveal is the
// only way to read it, so that every place that does can be found.
type Text struct{ value string }

// New wraps value.
func New(value string) Text { return Text{value} }

// Reveal returns the secret itself.
func (t Text) Reveal() string { return t.value }

// IsZero reports whether there is no secret.
func (t Text) IsZero() bool { return t.value == "" }

// String implements fmt.Stringer with a fixed word.
func (t Text) String() string { return redacted }

// GoString implements fmt.GoStringer with a fixed word.
func (t Text) GoString() string { return redacted }

// MarshalText implements encoding.TextMarshaler with a fixed word.
func (t Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue implements slog.LogValuer with a fixed word.
func (t Text) LogValue() slog.Value { return slog.StringValue(redacted) }
