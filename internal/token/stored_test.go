package token

import (
	"encoding/base64"
	"slices"
	"testing"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/register/storedtest"
	"zoho-worker/internal/secret"
)

// A token that one worker has minted is every worker's, of whatever version: where it
// could not be opened, each of them would mint one of its own.
func TestStoredForms(t *testing.T) {
	t.Parallel()
	at := func(minute int) time.Time { return time.Date(2026, 11, 27, 12, minute, 0, 0, time.UTC) }
	sealed, err := base64.StdEncoding.DecodeString("AQJrMQECAwQFBgcICQoLDDTaauXC9ZPlKdEQrP/Gpmy2nyNaYWW5H3h3lw==")
	if err != nil {
		t.Fatal(err)
	}
	r := record{
		Grant: 2, GrantID: "447c3e05cd1c9f06", Generation: 31, Sealed: sealed, MintedAt: at(0), ExpiresAt: at(59), APIDomain: "https://www.zohoapis.eu",
		Nonce: "U8WOmnExRRxAAJJ31vpnYh", Claim: &claim{Nonce: "U8WOmnExRRxAAJJ31vpo3j", LeaseMS: 15_000, By: "zoho-worker-7d9f"},
		Mints: []time.Time{at(0), at(1)}, BlockedUntil: at(10), Reason: Throttled, Failures: 3,
		Owed: []string{"recovered", "resumed"},
	}
	storedtest.Form(t, "token", r)
	keyring, err := secret.ParseKeyring("k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
	if err != nil {
		t.Fatal(err)
	}
	access, err := keyring.Open(r.Sealed, r.associated(&connection.Connection{Name: "acme", CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)})...)
	if err != nil || string(access) != "1000.access" {
		t.Errorf("the sealed token opens as %q, %v", access, err)
	}
	reasons := []Reason{"revoked", "throttled", "budget", "misconfigured", "accounts_unavailable", "claimed"}
	if !slices.Equal(Reasons(), reasons) {
		t.Errorf("the reasons are %q: %q stand in records", Reasons(), reasons)
	}
}
