package secret_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"zoho-worker/internal/secret"
)

func key(fill byte) string {
	return base64.StdEncoding.EncodeToString([]byte(strings.Repeat(string(rune(fill)), secret.KeySize)))
}

func ring(t testing.TB, text string) *secret.Keyring {
	t.Helper()
	k, err := secret.ParseKeyring(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParseKeyring(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"a:" + key('1'):                          "",
		" a:" + key('1') + " , b:" + key('2'):    "",
		"a:" + key('1') + ",":                    "",
		"":                                       "no encryption key",
		key('1'):                                 "no colon",
		":" + key('1'):                           "the id before the colon",
		"ä:" + key('1'):                          "the id before the colon",
		"a:" + key('1')[:20]:                     "has 15 bytes, want 32",
		"a:!" + key('1')[1:]:                     "not standard base64",
		"a:" + key('1') + ",a:" + key('2'):       `encryption key 2: id "a" is used twice`,
		key('1') + ",b:" + key('2')[:8] + ",c:":  "encryption key 3",
		strings.Repeat("k", 65) + ":" + key('1'): "the id before the colon",
	} {
		_, err := secret.ParseKeyring(text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if err != nil && (strings.Contains(err.Error(), key('1')[:8]) || strings.Contains(err.Error(), key('2')[:8])) {
			t.Errorf("shows a key: %v", err)
		}
	}
}

func TestGenerate(t *testing.T) {
	t.Parallel()
	a, b := secret.Generate(), secret.Generate()
	if a == b {
		t.Error("twice the same")
	}
	ring(t, a.Reveal())
}

func TestSealAndOpen(t *testing.T) {
	t.Parallel()
	k := ring(t, "a:"+key('1'))
	rapid.Check(t, func(t *rapid.T) {
		plain := rapid.SliceOf(rapid.Byte()).Draw(t, "plain")
		associated := rapid.SliceOf(rapid.String()).Draw(t, "associated")
		sealed := k.Seal(plain, associated...)
		opened, err := k.Open(sealed, associated...)
		if err != nil || string(opened) != string(plain) {
			t.Fatalf("%q, %v", opened, err)
		}
		other := rapid.SliceOf(rapid.String()).Draw(t, "other")
		if fmt.Sprintf("%q", other) != fmt.Sprintf("%q", associated) {
			if _, err := k.Open(sealed, other...); !errors.Is(err, secret.ErrTampered) {
				t.Fatalf("opened for %q: %v", other, err)
			}
		}
		at := rapid.IntRange(0, len(sealed)-1).Draw(t, "at")
		changed := append([]byte(nil), sealed...)
		changed[at] ^= byte(rapid.IntRange(1, 255).Draw(t, "by"))
		_, err = k.Open(changed, associated...)
		if _, unknown := errors.AsType[secret.ErrUnknownKey](err); !errors.Is(err, secret.ErrTampered) && !unknown {
			t.Fatalf("changed at %d: %v", at, err)
		}
		if _, err := k.Open(sealed[:at], associated...); !errors.Is(err, secret.ErrTampered) {
			t.Fatalf("cut at %d: %v", at, err)
		}
	})
}

func TestFraming(t *testing.T) {
	t.Parallel()
	k := ring(t, "a:"+key('1'))
	sealed := k.Seal([]byte("x"), "a", "bc")
	for _, other := range [][]string{{"ab", "c"}, {"abc"}, {"a", "bc", ""}, {"", "a", "bc"}, {"bc", "a"}, nil} {
		if _, err := k.Open(sealed, other...); !errors.Is(err, secret.ErrTampered) {
			t.Errorf("%q: %v", other, err)
		}
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	old := ring(t, "old:"+key('1'))
	both := ring(t, "new:"+key('2')+",old:"+key('1'))
	only := ring(t, "new:"+key('2'))
	sealed := old.Seal([]byte("token"), "x")
	if opened, err := both.Open(sealed, "x"); err != nil || string(opened) != "token" {
		t.Errorf("%q, %v", opened, err)
	}
	if both.SealedByFirst(sealed) || !both.SealedByFirst(both.Seal(nil)) || both.First() != "new" {
		t.Error("first key")
	}
	_, err := only.Open(sealed, "x")
	if unknown, ok := errors.AsType[secret.ErrUnknownKey](err); !ok || unknown.ID != "old" || errors.Is(err, secret.ErrTampered) {
		t.Errorf("got %v", err)
	}
	// The id says old, the key is another one.
	if _, err := ring(t, "old:"+key('3')).Open(sealed, "x"); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("got %v", err)
	}
	// Nor does a key open what another id says, although it is the same key.
	twins := ring(t, "old:"+key('1')+",odd:"+key('1'))
	if _, err := twins.Open(bytes.Replace(sealed, []byte("old"), []byte("odd"), 1), "x"); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("got %v", err)
	}
	// What is no id is shown to nobody.
	if _, err := old.Open(bytes.Replace(sealed, []byte("old"), []byte("o\nd"), 1), "x"); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("got %v", err)
	}
	sealed[0] = 2
	if _, err := old.Open(sealed, "x"); !errors.Is(err, secret.ErrTampered) || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("got %v", err)
	}
}

func TestKeyringDoesNotPrint(t *testing.T) {
	t.Parallel()
	k := ring(t, "a:"+key('1'))
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "keys", k)
	for _, s := range []string{fmt.Sprint(k), fmt.Sprintf("%+v %#v %s %q", k, k, k, k), log.String()} {
		if !strings.Contains(s, "redacted") {
			t.Error(s)
		}
	}
}
