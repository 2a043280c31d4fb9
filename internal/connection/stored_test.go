package connection

import (
	"encoding/base64"
	"testing"
	"time"

	"zoho-worker/internal/register/storedtest"
	"zoho-worker/internal/secret"
)

// Connections are kept for ever: a record of the first version is read by the last.
func TestStoredForms(t *testing.T) {
	t.Parallel()
	at := func(minute int) time.Time { return time.Date(2026, 11, 27, 12, minute, 0, 0, time.UTC) }
	sealed, err := base64.StdEncoding.DecodeString("AQJrMQIDBAUGBwgJCgsMDVj2lPFXCLrU0BxQU6gstf0fKlPzs4Z0cU/2rq4=")
	if err != nil {
		t.Fatal(err)
	}
	c := &Connection{
		Name: "acme", Nickname: "Acme sales", Location: "eu", Environment: Sandbox, OrgID: "20078233816", UserID: "5725767000000411001",
		OrgName: "Acme", UserName: "Ada (ada@example.com)", Edition: "Enterprise", Concurrency: 5, DailyCredits: 20_000, Ordered: true,
		Scopes: []string{"ZohoCRM.modules.ALL"}, Status: Revoked, StatusReason: "invalid_code", Grant: 2,
		CreatedAt: at(0), UpdatedAt: at(1), UpdatedBy: "ada@example.com", RevokedAt: at(2),
	}
	storedtest.Form(t, "connection", stored{Connection: c, Sealed: sealed})
	keyring, err := secret.ParseKeyring("k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
	if err != nil {
		t.Fatal(err)
	}
	c.sealed = sealed
	if token, err := c.RefreshToken(keyring); err != nil || token.Reveal() != "1000.refresh" {
		t.Errorf("the sealed token opens as %q, %v", token.Reveal(), err)
	}
	storedtest.Form(t, "identity", holding{
		Connection: "acme", HeldAt: at(0), Grants: []MintedGrant{{ID: "0123456789abcdef", Connection: "acme", At: at(0)}},
	})
	// By these a refresh token is known again, and a user has one connection.
	if id := grantID(secret.New("1000.refresh")); id != "8777849937ebc664" {
		t.Errorf("the refresh token's id is %s", id)
	}
	if subject := (Identity{Location: "eu", Environment: Sandbox, OrgID: "1", UserID: "2"}).subject(); subject != "zoho.identities.eu.sandbox.1.2" {
		t.Errorf("the identity is at %s", subject)
	}
	if queue := c.Queue(); queue != "org-eu-sandbox-20078233816" {
		t.Errorf("the org's record is that of %s", queue)
	}
}
