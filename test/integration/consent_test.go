package integration

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho/zohotest"
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

// A one-time link by which nothing was connected is good again, whatever became of the
// consent, and its grant is not left behind at Zoho.
func TestLinkOfWhatCameToNothing(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	ops, guest := c.person(), c.person()
	ops.follow(ops.connect("Acme", ada)).want(t, 200, "is connected")
	made := ops.submit("/connect", "/connect", "nickname", "Other", "environment", "production", "how", "link").want(t, 200)
	link := strings.TrimPrefix(linkRe.FindString(made.body), c.base)
	choose := func() (page, consentOf string) {
		t.Helper()
		decide := guest.get(guest.accept(guest.submit(link, link).leaves(t), ada)).want(t, 303)
		guest.follow(decide).want(t, 200, "connected already")
		c.person().get(link).want(t, 410, "used already") // meanwhile
		return decide.location, strings.TrimPrefix(decide.location, "/oauth/decide?consent=")
	}
	good := func(how string, revocations int) {
		t.Helper()
		if got := guest.get(link); got.status != 200 {
			t.Fatalf("%s: the link is no longer good: %s", how, text(got.body))
		}
		if n := c.revocations(); n != revocations {
			t.Fatalf("%s: %d revocations, want %d", how, n, revocations)
		}
	}

	c.Zoho.Inject(zohotest.TokenInvalidClient())
	guest.get(guest.accept(guest.submit(link, link).leaves(t), ada)).want(t, 502, "does not accept the app", "still good")
	good("refused by Zoho", 0)

	page, consentOf := choose()
	guest.follow(guest.submit(page, "/oauth/decide", "consent", consentOf, "do", "cancel")).want(t, 200, "Nothing was changed")
	good("cancelled", 1)

	choose()
	keyring, _ := secret.ParseKeyring(c.keys.Reveal())
	client, err := c.config().NewZoho()
	if err != nil {
		t.Fatal(err)
	}
	later := consent.New(consent.Options{
		JS: c.js, Keyring: keyring, Connections: c.store, Zoho: client, Logger: c.logs.logger(),
		Now: func() time.Time { return time.Now().Add(20 * time.Minute) },
	})
	if err := later.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	good("nobody decided", 2)

	page, consentOf = choose()
	form := formRe.FindStringSubmatch(guest.get(page).body)[1]
	ops.follow(ops.submit("/connections/acme/disconnect", "/connections/acme/disconnect")).want(t, 200, "acme is disconnected")
	guest.raw("/oauth/decide", url.Values{"form": {form}, "consent": {consentOf}, "do": {"reauthorize"}}, nil).want(t, 409, "The connection acme is gone")
	good("the connection was gone", 4) // its own grant, and the fresh one

	guest.follow(guest.get(guest.accept(guest.submit(link, link).leaves(t), ada))).want(t, 200, "Other is connected")
	guest.get(link).want(t, 410, "used already")
}

// A user whose connection is revoked has it all the same; and a choice is for the org that
// the connection was of: not for whichever has its name by then.
func TestChoiceIsOfOneOrg(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected")
	c.markRevoked("acme", "for the test")
	decide := p.connect("Again", ada)
	form := formRe.FindStringSubmatch(p.follow(decide).want(t, 200, "connected already", "Re-authorize acme").body)[1]
	p.follow(p.submit("/connections/acme/disconnect", "/connections/acme/disconnect")).want(t, 200, "acme is disconnected")
	p.follow(p.connect("Acme", "user-other")).want(t, 200, "is connected")
	grant, before := c.record("acme").Grant, c.revocations()
	consentOf := strings.TrimPrefix(decide.location, "/oauth/decide?consent=")
	p.raw("/oauth/decide", url.Values{"form": {form}, "consent": {consentOf}, "do": {"reauthorize"}}, nil).want(t, 502)
	if record := c.record("acme"); record.OrgID != otherOrg || record.Grant != grant || c.revocations() != before+1 {
		t.Errorf("record: %+v, %d of 1 revocations", record, c.revocations()-before)
	}
}

// Whoever has a link may set out by it some times, not for ever.
func TestLinkStartsAreBounded(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	made := p.submit("/connect", "/connect", "nickname", "Acme", "environment", "production", "how", "link").want(t, 200)
	link := strings.TrimPrefix(linkRe.FindString(made.body), c.base)
	for starts := 0; ; starts++ {
		got := p.submit(link, link)
		if got.status == 200 && starts < 50 {
			continue
		}
		if got.status != 410 || starts != 20 {
			t.Errorf("after %d starts: %d %s", starts, got.status, text(got.body))
		}
		return
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

// deaf stores what is published to the subject, and its PubAck is lost, once.
type deaf struct {
	jetstream.JetStream
	subject string
	lost    atomic.Bool
}

func (d *deaf) PublishMsg(ctx context.Context, msg *nats.Msg, o ...jetstream.PublishOpt) (*jetstream.PubAck, error) {
	ack, err := d.JetStream.PublishMsg(ctx, msg, o...)
	if err == nil && msg.Subject == d.subject && d.lost.CompareAndSwap(false, true) {
		return nil, context.DeadlineExceeded
	}
	return ack, err
}

// A connection that is re-authorized while a PubAck is lost still has a refresh
// token that Zoho knows: the old one, or the new one.
func TestReauthorizedWithoutPubAck(t *testing.T) {
	t.Parallel()
	for _, kind := range []consent.Kind{consent.Reauthorize, consent.Connect} {
		r := newRig(t, zohotest.Options{})
		name := "demo"
		r.Zoho.AddOrg(zohotest.Org{ID: devbox.OrgID, Name: "Demo", Concurrency: 10})
		r.Zoho.AddUser(zohotest.User{ID: "1001", Email: "demo@example.com", OrgID: devbox.OrgID})
		if kind == consent.Reauthorize {
			_, err := r.store.Add(t.Context(), connection.Connection{Name: name, Location: "us", OrgID: devbox.OrgID, UserID: "1001"}, secret.New(r.Zoho.GrantRefreshToken("1001")))
			if err != nil {
				t.Fatal(err)
			}
		}
		keyring, err := secret.ParseKeyring(r.keys.Reveal())
		if err != nil {
			t.Fatal(err)
		}
		client, err := r.config().NewZoho()
		if err != nil {
			t.Fatal(err)
		}
		js := &deaf{JetStream: r.js, subject: "zoho.connections." + name}
		store, err := connection.Open(t.Context(), js, keyring, connection.Options{Logger: r.logs.logger()})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		flow := consent.New(consent.Options{JS: r.js, Keyring: keyring, Connections: store, Zoho: client, Logger: r.logs.logger()})
		code := r.Zoho.AuthorizationCode("1001", zohotest.Consent{Scopes: consent.DefaultScopes})
		_, err = flow.Redeem(t.Context(), consent.Pending{Kind: kind, Name: name, Location: "us", Environment: "production"}, code)
		if err != nil || !js.lost.Load() {
			t.Errorf("%s: %v; a PubAck was lost: %v", kind, err, js.lost.Load())
		}
		c, err := r.store.Fetch(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		refresh, err := c.RefreshToken(keyring)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Refresh(t.Context(), "us", refresh); err != nil {
			t.Errorf("%s: the connection is %s, and its refresh token (grant %d) is dead: %v", kind, c.Status, c.Grant, err)
		}
	}
}
