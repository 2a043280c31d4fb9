package integration

import (
	"strings"
	"testing"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// Encryption keys are rotated while workers are replaced one after the other. At each
// step of docs/operations.md a worker opens what those of the step before and after it
// seal: a token is minted once for both, and a connection that is authorized meanwhile
// goes on.
func TestKeysAreRotatedInSteps(t *testing.T) {
	t.Parallel()
	_, other, _ := strings.Cut(secret.Generate().Reveal(), ":")
	for name, step := range map[string]func(old, fresh string) (before, after string){
		"the new key behind the old one": func(old, fresh string) (string, string) { return old, old + "," + fresh },
		"the new key in front":           func(old, fresh string) (string, string) { return old + "," + fresh, fresh + "," + old },
		"the old key gone":               func(old, fresh string) (string, string) { return fresh + "," + old, fresh },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, zohotest.Options{})
			before, after := step(r.keys.Reveal(), "k2:"+other)
			with := func(keys string) func(*app.Config) {
				return func(c *app.Config) { c.EncryptionKeys = secret.New(keys) }
			}
			store := func(keys string) *connection.Store {
				t.Helper()
				keyring, err := secret.ParseKeyring(keys)
				if err != nil {
					t.Fatal(err)
				}
				s, err := connection.Open(t.Context(), r.js, keyring, connection.Options{Logger: r.logs.logger()})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(s.Close)
				return s
			}
			refresh := r.demo(5)
			if _, err := store(before).Reseal(t.Context()); err != nil { // as the step before ends
				t.Fatal(err)
			}
			// The worker with the keys of after mints, and goes; that with those of before goes on.
			w := r.worker(with(after))
			wantStatus(t, r.call("demo", list("after")), 200)
			stop(w)
			r.worker(with(before))
			wantStatus(t, r.call("demo", list("before")), 200)
			if n := r.Zoho.RefreshAttempts(); n != 1 {
				t.Errorf("%d tokens were minted for two workers", n)
			}
			if _, err := store(after).Reauthorize(t.Context(), "demo", secret.New(refresh), nil); err != nil {
				t.Fatal(err)
			}
			wantStatus(t, r.call("demo", list("again")), 200)
		})
	}
}
