package integration

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
)

// An idle connection's grant is looked at once a day by one worker, and a dead
// one is found.
func TestIdleCheck(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	c.connect("idle", devbox.OrgID, 10)
	dead := c.connect("dead", devbox.OrgID, 10)
	c.Zoho.RevokeRefreshToken(dead)
	keyring, _ := secret.ParseKeyring(c.keys.Reveal())
	client, err := c.config().NewZoho()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	for range 3 {
		tokens, err := token.Open(ctx, token.Options{JS: c.js, Connections: c.store, Keyring: keyring, Refresher: client, Logger: c.logs.logger()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tokens.Close)
		idle := &consent.Idle{
			Flow:        consent.New(consent.Options{JS: c.js, Keyring: keyring, Connections: c.store, Zoho: client, Logger: c.logs.logger()}),
			Connections: c.store, Tokens: tokens, Every: 20 * time.Millisecond, Pause: time.Millisecond,
			Now: func() time.Time { return time.Now().Add(25 * time.Hour) },
		}
		work.Go(func() { idle.Run(ctx) })
	}
	eventually(t, "the dead one is found", func() bool { return c.record("dead").Status == connection.Revoked })
	eventually(t, "both were looked at", func() bool { return c.Zoho.RefreshAttempts() >= 2 })
	time.Sleep(300 * time.Millisecond)
	stop()
	work.Wait()
	if n := c.Zoho.RefreshAttempts(); n != 2 {
		t.Fatalf("%d refreshes, want one each", n)
	}
}

// A fresh grant that nobody decides about goes back to Zoho; a state ends.
func TestConsentsEnd(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected")
	decide := p.connect("Again", ada)
	p.follow(decide).want(t, 200, "connected already")
	keyring, _ := secret.ParseKeyring(c.keys.Reveal())
	client, err := c.config().NewZoho()
	if err != nil {
		t.Fatal(err)
	}
	flow := func(later time.Duration) *consent.Flow {
		return consent.New(consent.Options{
			JS: c.js, Keyring: keyring, Connections: c.store, Zoho: client, Logger: c.logs.logger(),
			Now: func() time.Time { return time.Now().Add(later) },
		})
	}
	if err := flow(0).Sweep(t.Context()); err != nil || c.revocations() != 0 {
		t.Fatalf("swept too early: %d, %v", c.revocations(), err)
	}
	if err := flow(20 * time.Minute).Sweep(t.Context()); err != nil || c.revocations() != 1 {
		t.Fatalf("%d revocations, %v", c.revocations(), err)
	}
	p.follow(decide).want(t, 409, "used already")
	identity, _ := c.record("acme").Identity()
	if _, grants, err := c.store.Holder(t.Context(), identity); err != nil || len(grants) != 1 {
		t.Fatalf("%d grants are counted, %v", len(grants), err)
	}

	begun, err := flow(0).Begin(t.Context(), consent.Pending{Kind: consent.Connect, Name: "late", Environment: "production", RedirectURI: c.base + "/oauth/callback"})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(p.accept(begun.URL, grace))
	before := c.exchanges()
	_, err = flow(16*time.Minute).Callback(t.Context(), u.Query(), begun.State)
	if fault, ok := errors.AsType[*consent.Fault](err); !ok || fault.Code != consent.StateInvalid || c.exchanges() != before {
		t.Fatalf("a late callback: %v", err)
	}
}

// Before Zoho drops a user's oldest refresh token, the page says which.
func TestGrantWarning(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected")
	identity, _ := c.record("acme").Identity()
	for i := range 16 { // by other means, such as another tool with the same client
		if _, err := c.store.NoteGrant(t.Context(), identity, secret.New(fmt.Sprint("another ", i)), ""); err != nil {
			t.Fatal(err)
		}
	}
	p.get("/connections/acme").want(t, 200, "this user has 17 that were never revoked", "ends the oldest: that of connection acme")
}
