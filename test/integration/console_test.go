package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/event"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// The people of the simulator that the console's tests sign in as.
const (
	ada      = "user-ada"
	grace    = "user-grace"
	elif     = "user-elif"
	euOrg    = "20078233816"
	otherOrg = "770000099"
)

var (
	seenMu sync.Mutex
	formRe = regexp.MustCompile(`name="form" value="([^"]+)"`)
)

var leaveRe = regexp.MustCompile(`http-equiv="refresh" content="0; url=([^"]+)"`)

func TestConsoleConnects(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.get("/").want(t, 200, "No Zoho account is connected yet")

	zoho := p.begin("Acme & Söhne Sales", "location", "us")
	query, err := url.Parse(zoho)
	if err != nil {
		t.Fatal(err)
	}
	q := query.Query()
	if q.Get("access_type") != "offline" || q.Get("prompt") != "consent" || q.Get("code_challenge_method") != "S256" || q.Get("code_challenge") == "" ||
		!strings.Contains(q.Get("scope"), "ZohoCRM.modules.ALL,ZohoCRM.settings.ALL") || q.Get("redirect_uri") != c.base+"/oauth/callback" || len(q.Get("state")) < 40 {
		t.Fatalf("consent is asked for with %v", q)
	}
	got := p.get(p.accept(zoho, ada))
	if got.location != "/connections/acme-s-hne-sales" {
		t.Fatalf("%d, to %q: %s", got.status, got.location, text(got.body))
	}
	p.follow(got).want(t, 200, "Acme & Söhne Sales is connected", "Ada Lovelace", "ada@example.com", "Analytical Engines", "Professional", "15 calls in flight at most")
	p.get("/").want(t, 200, "1 connected", "Ada Lovelace")

	record := c.record("acme-s-hne-sales")
	if record.UserID != ada || record.OrgID != devbox.OrgID || record.Places() != 15 || record.Location != "us" || record.Grant != 1 {
		t.Fatalf("record: %+v", record)
	}
	wantStatus(t, c.call(record.Name, list(c.id("read"))), 200)
	p.submit("/connections/"+record.Name, "/connections/"+record.Name+"/test").want(t, 200, "The connection works", "ada@example.com")
	eventually(t, "the list shows the last use", func() bool { return strings.Contains(text(p.get("/").body), "0 s ago") })
	if n := c.exchanges(); n != 1 {
		t.Fatalf("%d exchanges", n)
	}

	// An account elsewhere: Zoho says where.
	p.follow(p.connect("Europe", elif)).want(t, 200, "Europe is connected", "Northwind Europe")
	if record := c.record("europe"); record.Location != "eu" || record.OrgID != euOrg {
		t.Fatalf("record: %+v", record)
	}
	wantStatus(t, c.call("europe", list(c.id("read"))), 204)
}

// What can go wrong on the way ends on a page that says so, and leaves nothing behind.
func TestConsoleRefuses(t *testing.T) {
	t.Parallel()
	c := newConsole(t)

	t.Run("denial", func(t *testing.T) {
		p := c.person()
		back := p.get(p.begin("denied")+"&deny=1").want(t, http.StatusFound).location
		p.get(back+"&error_description=%3Cscript%3Ealert(1)%3C/script%3E").want(t, 400, "Access was not given", "begin again")
		p.get(back).want(t, 400, "can't be completed")
		p = c.person()
		u, _ := url.Parse(p.get(p.begin("denied") + "&deny=1").location)
		q := u.Query()
		q.Set("error", "<script>a secret</script>")
		p.get("/oauth/callback?"+q.Encode()).want(t, 400, "Access was not given")
		if logs := c.logs.text.String(); !strings.Contains(logs, "access_denied") || strings.Contains(logs, "a secret") {
			t.Error("the log has to say what Zoho said, and nothing that only looks so")
		}
	})
	t.Run("forged state", func(t *testing.T) {
		p, attacker := c.person(), c.person()
		back := attacker.accept(attacker.begin("forged"), ada)
		before := c.exchanges()
		p.get(back).want(t, 400, "did not begin in this browser") // the attacker's account, the victim's browser
		own := p.accept(p.begin("forged2"), ada)
		u, _ := url.Parse(own)
		q := u.Query()
		q.Set("state", q.Get("state")[:10]+strings.Repeat("x", len(q.Get("state"))-10))
		p.get("/oauth/callback?"+q.Encode()).want(t, 400, "can't be completed")
		q.Del("state")
		p.get("/oauth/callback?"+q.Encode()).want(t, 400, "can't be completed")
		if n := c.exchanges(); n != before {
			t.Errorf("%d exchanges", n-before)
		}
		attacker.follow(attacker.get(back)).want(t, 200, "forged is connected") // not burnt by the attempt
		before = c.exchanges()
		attacker.get(back).want(t, 400) // its cookie is gone
		if c.exchanges() != before {
			t.Error("exchanged twice")
		}
	})
	t.Run("replayed while the first is under way", func(t *testing.T) {
		p := c.person()
		back := p.accept(p.begin("replayed"), grace)
		before := c.exchanges()
		var wait sync.WaitGroup
		statuses := make([]int, 6)
		for i := range statuses {
			wait.Go(func() { statuses[i] = p.get(back).status })
		}
		wait.Wait()
		slices.Sort(statuses)
		if n := c.exchanges() - before; n != 1 || statuses[0] != 303 || statuses[1] < 400 {
			t.Fatalf("%d exchanges, statuses %v", n, statuses)
		}
	})
	t.Run("forged accounts-server", func(t *testing.T) {
		var posted bool
		evil := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { posted = true }))
		defer evil.Close()
		for _, server := range []string{
			evil.URL, "https://evil.example", "http://accounts.zoho.com", "https://accounts.zoho.com:444", "https://accounts.zoho.com@evil.example",
			"https://accounts.zoho.com/x", "https://accounts.zoho.com.evil.example", "",
		} {
			p := c.person()
			u, _ := url.Parse(p.accept(p.begin("evil"), ada))
			q := u.Query()
			q.Set("accounts-server", server)
			before := c.Zoho.Seen()
			p.get("/oauth/callback?"+q.Encode()).want(t, 400, "did not come from Zoho")
			if c.Zoho.Seen() != before {
				t.Errorf("%q: something was sent", server)
			}
		}
		p := c.person()
		u, _ := url.Parse(p.accept(p.begin("evil"), grace))
		q := u.Query()
		q.Set("location", "xx")
		p.get("/oauth/callback?"+q.Encode()).want(t, 400, "did not come from Zoho")
		if posted {
			t.Error("the client secret went to the forged server")
		}
	})
	t.Run("wrong data centre", func(t *testing.T) {
		p := c.person()
		before := c.exchanges()
		p.get(p.accept(p.begin("europe", "location", "us"), elif)).want(t, 400, "lives in another data centre", "Connect at Europe")
		if c.exchanges() != before {
			t.Error("the code was exchanged")
		}
	})
	// callback is a callback with a code of the test's making.
	callback := func(p *person, nickname, code string) answer {
		u, _ := url.Parse(p.begin(nickname))
		q := url.Values{"state": {u.Query().Get("state")}, "code": {code}, "location": {"us"}, "accounts-server": {c.ZohoURL}}
		return p.get("/oauth/callback?" + q.Encode())
	}
	t.Run("expired code", func(t *testing.T) {
		callback(c.person(), "late", "1000.used.before").want(t, 400, "code has expired", "without a pause")
	})
	t.Run("no refresh token", func(t *testing.T) {
		code := c.Zoho.AuthorizationCode(grace, zohotest.Consent{Scopes: consent.DefaultScopes, Online: true})
		before := c.revocations()
		callback(c.person(), "online", code).want(t, 400, "no lasting access", "Connected Apps")
		if c.revocations() != before+1 {
			t.Error("the access token was not given back")
		}
	})
	t.Run("too narrow scopes", func(t *testing.T) {
		code := c.Zoho.AuthorizationCode("user-other", zohotest.Consent{Scopes: []string{"ZohoCRM.modules.ALL"}})
		before := c.revocations()
		callback(c.person(), "narrow", code).want(t, 400, "too narrow")
		if c.revocations() != before+1 {
			t.Error("the fresh grant was not given back")
		}
	})
	t.Run("app not accepted", func(t *testing.T) {
		c.Zoho.Inject(zohotest.TokenInvalidClient())
		callback(c.person(), "client", "1000.a.b").want(t, 502, "does not accept the app", "multi-DC")
		c.Zoho.Inject(zohotest.TokenThrottle())
		callback(c.person(), "throttle", "1000.a.b").want(t, 503, "asks for a pause")
		c.Zoho.Inject(zohotest.TokenAPIDomain("https://evil.example"))
		code := c.Zoho.AuthorizationCode("user-other", zohotest.Consent{Scopes: consent.DefaultScopes})
		callback(c.person(), "domain", code).want(t, 502, "unknown API host")
	})
	t.Run("form", func(t *testing.T) {
		p := c.person()
		p.submit("/connect", "/connect", "nickname", "").want(t, 422, "Say what people call")
		p.submit("/connect", "/connect", "nickname", "", "name", "No!", "location", "xx").want(t, 422, // in the form's order
			"look at this again Say what people call this connection, like “Acme sales”. A name is 1 to 63 of a–z, 0–9, - and _, "+
				"the first a letter or digit. Choose one of Zoho's data centres.")
		p.submit("/connect", "/connect", "nickname", "x", "name", "No Name!").want(t, 422, "the first a letter or digit")
		p.submit("/connect", "/connect", "nickname", "x", "name", "forged").want(t, 422, "of this name already", "Re-authorize forged")
		p.submit("/connect", "/connect", "nickname", "x", "location", "mars", "environment", "moon", "scopes", "a b<").want(t, 422, "data centres", "Scopes look like")
	})
	for _, conn := range c.store.All() {
		if !slices.Contains([]string{"forged", "replayed"}, conn.Name) {
			t.Errorf("%s was stored", conn.Name)
		}
	}
}

// One Zoho user, one connection: a second one is not made.
func TestConsoleDuplicate(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected")

	back := p.accept(p.begin("Acme again"), ada)
	decide := p.get(back).want(t, 303)
	if again := p.get(back); again.location != decide.location { // somebody was impatient
		t.Fatalf("loaded again it leads to %q: %s", again.location, text(again.body))
	}
	page := p.follow(decide).want(t, 200, "connected already", "Ada Lovelace", "Re-authorize acme")
	if strings.Contains(decide.location, "code=") || strings.Contains(page.body, "1000.") {
		t.Fatal("the code or a token is on the page")
	}
	c.person().get(decide.location).want(t, 400, "did not begin in this browser") // somebody else's browser
	consentOf := strings.TrimPrefix(decide.location, "/oauth/decide?consent=")
	got := p.submit(decide.location, "/oauth/decide", "consent", consentOf, "do", "reauthorize")
	p.follow(got).want(t, 200, "connected again")
	if record := c.record("acme"); record.Grant != 2 {
		t.Fatalf("grant %d", record.Grant)
	}
	if n := c.revocations(); n != 1 { // the grant before it
		t.Fatalf("%d revocations", n)
	}
	wantStatus(t, c.call("acme", list(c.id("read"))), 200)
	p.submit("/connect", "/oauth/decide", "consent", consentOf, "do", "reauthorize").want(t, 400) // once

	decide = p.connect("Acme again", ada)
	consentOf = strings.TrimPrefix(decide.location, "/oauth/decide?consent=")
	got = p.submit(decide.location, "/oauth/decide", "consent", consentOf, "do", "cancel")
	p.follow(got).want(t, 200, "Nothing was changed")
	if record := c.record("acme"); record.Grant != 2 || c.revocations() != 2 {
		t.Fatalf("grant %d, %d revocations", record.Grant, c.revocations())
	}
	wantStatus(t, c.call("acme", list(c.id("read"))), 200)
	if all := c.store.All(); len(all) != 1 {
		t.Fatalf("%d connections", len(all))
	}
	identity, _ := c.record("acme").Identity()
	if _, grants, err := c.store.Holder(t.Context(), identity); err != nil || len(grants) != 1 {
		t.Fatalf("%d grants are counted, %v", len(grants), err)
	}

	// Another user of the org may take the name over, a user of another org not.
	again := func(user string) answer {
		zoho := p.submit("/connections/acme/reauthorize", "/connections/acme/reauthorize").leaves(t)
		return p.get(p.accept(zoho, user))
	}
	again("user-other").want(t, 409, "another Zoho organisation")
	decide = again(grace)
	p.follow(decide).want(t, 200, "Another Zoho user signed in", "Grace Hopper")
	consentOf = strings.TrimPrefix(decide.location, "/oauth/decide?consent=")
	p.follow(p.connect("Grace", grace)).want(t, 200, "Grace is connected") // while that was thought about
	got = p.submit(decide.location, "/oauth/decide", "consent", consentOf, "do", "reauthorize")
	got.want(t, 409, "connected already", "has the connection grace")
	if record := c.record("acme"); record.UserID != ada || record.Grant != 2 {
		t.Fatalf("record: %+v", record)
	}
	if err := c.store.Remove(t.Context(), "grace", "test"); err != nil {
		t.Fatal(err)
	}
	decide = again(grace)
	consentOf = strings.TrimPrefix(decide.location, "/oauth/decide?consent=")
	p.follow(p.submit(decide.location, "/oauth/decide", "consent", consentOf, "do", "reauthorize")).want(t, 200, "Grace Hopper")
	if record := c.record("acme"); record.UserID != grace || record.Grant != 3 {
		t.Fatalf("record: %+v", record)
	}
	p.follow(p.connect("Ada", ada)).want(t, 200, "Ada is connected") // she is free again
}

// Many connect the same user under different names at once, by two workers.
func TestConsoleDuplicateAtOnce(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	public := func(config *app.Config) { config.ConsoleAuth, config.PublicURL = "none", c.base }
	second := c.rig.worker(public)
	const n = 6
	var wait sync.WaitGroup
	results := make([]answer, n)
	for i := range n {
		p := c.person()
		back := p.accept(p.begin(fmt.Sprint("acme ", i)), ada)
		if i%2 == 1 { // the callback comes to the other worker
			u, _ := url.Parse(back)
			p.client.Transport = rerouted{from: u.Host, to: second.HTTPAddr}
		}
		wait.Go(func() { results[i] = p.get(back) })
	}
	wait.Wait()
	connected := 0
	for _, got := range results {
		if strings.HasPrefix(got.location, "/connections/") {
			connected++
		} else if !strings.HasPrefix(got.location, "/oauth/decide") {
			t.Errorf("%d %s: %s", got.status, got.location, text(got.body))
		}
	}
	if all := c.store.All(); connected != 1 || len(all) != 1 {
		t.Fatalf("%d connected, %d records", connected, len(all))
	}
}

// A dead grant is told once, with the way out; fifty requests wait for it, and
// go on by themselves after somebody has signed in again.
func TestConsoleReauthorize(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var posted []event.Event
	failures := 2
	key := secret.New("webhook-key")
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		signature := r.Header.Get("Zoho-Signature")
		var at int64
		if _, err := fmt.Sscanf(signature, "t=%d,", &at); err != nil || event.Signature(key, time.Unix(at, 0), body) != signature {
			t.Errorf("signature %q", signature)
		}
		if failures > 0 {
			failures--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var e event.Event
		_ = json.Unmarshal(body, &e)
		posted = append(posted, e)
	}))
	t.Cleanup(hook.Close)
	c := newConsole(t, func(config *app.Config) { config.WebhookURL, config.WebhookSecret = hook.URL, key })
	c.rig.worker(func(config *app.Config) {
		config.WebhookURL, config.WebhookSecret, config.PublicURL = hook.URL, key, c.base
	})
	p := c.person()
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected")
	p.follow(p.connect("Globex", grace)).want(t, 200, "is connected") // of the same org
	wantStatus(t, c.call("acme", list(c.id("before"))), 200)

	record := c.record("acme")
	keyring, err := secret.ParseKeyring(c.keys.Reveal())
	if err != nil {
		t.Fatal(err)
	}
	refresh, err := record.RefreshToken(keyring)
	if err != nil {
		t.Fatal(err)
	}
	c.Zoho.RevokeRefreshToken(refresh.Reveal())
	const n = 50
	for i := range n {
		c.publish("acme", list(fmt.Sprint("waiting-", i)))
	}
	eventually(t, "the connection is revoked", func() bool { return c.record("acme").Status == connection.Revoked })
	wantStatus(t, c.call("globex", list(c.id("other"))), 200) // the org's other connection goes on
	eventually(t, "the list shows who waits", func() bool {
		page := text(p.get("/").want(t, 200, "Revoked", "1 needs you").body)
		return strings.Contains(page, "50 waiting")
	})
	p.get("/connections/acme").want(t, 200, "no longer accepts", "wait until their deadline")

	zoho := p.submit("/connections/acme/reauthorize", "/connections/acme/reauthorize").leaves(t)
	p.follow(p.get(p.accept(zoho, ada))).want(t, 200, "connected again", "go on by themselves")
	for id, response := range c.awaitAll("acme", n) {
		if response.Status != 200 || response.Error != nil {
			t.Fatalf("%s: %s", id, response.AppendJSON(nil))
		}
	}
	eventually(t, "the events are there", func() bool { return slices.Contains(names(c.events("acme")()), "recovered") })
	var kinds []string
	for _, e := range c.events("acme")() {
		if e.Event != "paused" && e.Event != "resumed" {
			kinds = append(kinds, e.Event)
		}
		if e.Event == "revoked" && e.ReauthorizeURL != c.base+"/connections/acme/reauthorize" {
			t.Errorf("the event leads to %q", e.ReauthorizeURL)
		}
	}
	slices.Sort(kinds)
	if !slices.Equal(kinds, []string{"connected", "reauthorized", "recovered", "revoked"}) {
		t.Fatalf("events %v", kinds)
	}
	eventually(t, "the webhook was told of all", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(posted) >= 5
	})
	time.Sleep(200 * time.Millisecond) // a second sender would be as quick
	mu.Lock()
	defer mu.Unlock()
	if len(posted) != 5 || failures != 0 { // connected twice, revoked, reauthorized, recovered
		t.Fatalf("posted: %v", names(posted))
	}
}

func TestConsoleDisconnect(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected")
	wantStatus(t, c.call("acme", list(c.id("before"))), 200)
	p.get("/connections/acme/disconnect").want(t, 200, "revoked at Zoho", "unknown_connection")

	// Zoho can't be asked: nothing is removed.
	c.Zoho.Inject(zohotest.Fault{Match: zohotest.Match{Endpoint: zohotest.Accounts, Path: "/oauth/v2/token/revoke"}, Name: "away", Answer: &zohotest.Answer{Status: 503}})
	p.submit("/connections/acme/disconnect", "/connections/acme/disconnect").want(t, 502, "nothing was removed", "even if Zoho")
	c.record("acme")

	got := p.submit("/connections/acme/disconnect", "/connections/acme/disconnect")
	p.follow(got).want(t, 200, "acme is disconnected", "Disconnected (1)", "by console")
	if n := c.revocations(); n != 1 {
		t.Fatalf("%d revocations at the simulator", n)
	}
	wantCode(t, c.call("acme", list(c.id("after"))), "unknown_connection")
	p.get("/connections/acme").want(t, 404, "It was disconnected on")
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected") // the name is free, the user too
	wantStatus(t, c.call("acme", list(c.id("anew"))), 200)

	// Where it goes all the same, nobody is told that the access is gone.
	c.Zoho.Inject(zohotest.Fault{Match: zohotest.Match{Endpoint: zohotest.Accounts, Path: "/oauth/v2/token/revoke"}, Name: "away", Answer: &zohotest.Answer{Status: 503}})
	got = p.submit("/connections/acme/disconnect", "/connections/acme/disconnect", "force", "yes")
	p.follow(got).want(t, 200, "acme is disconnected", "not revoked at Zoho", "Connected Apps")
}

// A connection is authorized again while it is disconnected, after its grant was
// revoked: the fresh one isn't left behind at Zoho.
func TestConsoleDisconnectWhileAuthorized(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected")
	fresh := c.Zoho.GrantRefreshToken(ada)
	authorize := sync.OnceFunc(func() {
		if _, err := c.store.Reauthorize(t.Context(), "acme", secret.New(fresh), nil); err != nil {
			t.Error(err)
		}
	})
	revocation := zohotest.Match{Endpoint: zohotest.Accounts, Path: "/oauth/v2/token/revoke"}
	c.Zoho.OnCall(zohotest.Executed, revocation, func(zohotest.Call) { authorize() })
	p.follow(p.submit("/connections/acme/disconnect", "/connections/acme/disconnect")).want(t, 200, "acme is disconnected", "was revoked at Zoho")
	if n := c.revocations(); n != 2 {
		t.Errorf("%d of 2 grants were revoked", n)
	}
}

// Zoho's answer to a code is taken in although the browser has gone: the access that
// it gives would be there, and nobody's.
func TestConsoleBrowserGoesAway(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	callback := p.accept(p.begin("Acme"), ada)
	c.Zoho.Inject(zohotest.Fault{Match: zohotest.Match{Endpoint: zohotest.Token}, Name: "slow", Before: 500 * time.Millisecond})
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, callback, nil)
	if err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() {
		resp, err := p.client.Do(req)
		if err == nil {
			_ = resp.Body.Close()
		}
		gone <- err
	}()
	eventually(t, "the code is at Zoho", func() bool { return c.exchanges() == 1 })
	leave()
	if err := <-gone; err == nil {
		t.Fatal("the browser did not leave")
	}
	eventually(t, "the connection is there", func() bool {
		_, there := c.store.Get("acme")
		return there
	})
	if n := c.revocations(); n != 0 {
		t.Errorf("%d revocations", n)
	}
}

// A one-time link connects one account, once, and shows nothing else.
func TestConsoleShare(t *testing.T) {
	t.Parallel()
	c := newConsole(t, basic(t))
	ops, guest := c.person(), c.person()
	ops.user = url.UserPassword("ops", "right")
	got := ops.submit("/connect", "/connect", "nickname", "Acme", "environment", "production", "how", "link").want(t, 200, "A link to send")
	link := linkRe.FindString(got.body)
	to := strings.TrimPrefix(link, c.base)

	guest.get("/").want(t, 401)
	guest.get(to).want(t, 200, "Connect your Zoho account", "Acme")
	guest.get("/link/"+strings.Repeat("x", 43)).want(t, 410, "not valid")

	// Denied: the link is still good.
	zoho := guest.submit(to, to).leaves(t)
	guest.get(guest.get(zoho+"&deny=1").location).want(t, 400, "Access was not given")
	// Two set out by it; the second to come back finds it used.
	late := c.person()
	first, second := guest.submit(to, to).leaves(t), late.submit(to, to).leaves(t)
	done := guest.get(guest.accept(first, ada))
	if done.location != "/oauth/done" {
		t.Fatalf("to %q: %s", done.location, text(done.body))
	}
	guest.follow(done).want(t, 200, "Acme is connected", "close this page")
	before := c.exchanges()
	late.get(late.accept(second, grace)).want(t, 410, "used already")
	if c.exchanges() != before {
		t.Error("the second code was exchanged")
	}
	guest.get(to).want(t, 410, "used already", "Ask whoever sent it")
	guest.get("/connections/acme").want(t, 401)
	record := c.record("acme")
	if record.UserID != ada || record.UpdatedBy != "link of ops" {
		t.Fatalf("record: %+v", record)
	}
}

var withdrawRe = regexp.MustCompile(`action="(/links/[0-9a-f]+/withdraw)"`)

// A one-time link is withdrawn by who sees the console: nobody begins by it, and who set
// out by it comes back to nothing. What a link is, its list doesn't say.
func TestConsoleLinkWithdrawn(t *testing.T) {
	t.Parallel()
	c := newConsole(t, basic(t))
	ops, guest := c.person(), c.person()
	ops.user = url.UserPassword("ops", "right")
	ops.get("/links").want(t, 200, "No open links")
	made := func(nickname string) (to string) {
		got := ops.submit("/connect", "/connect", "nickname", nickname, "environment", "production", "how", "link").want(t, 200, "A link to send")
		return strings.TrimPrefix(linkRe.FindString(got.body), c.base)
	}
	to := made("Acme")
	open := ops.get("/links").want(t, 200, "Acme acme connecting no sign-in begun yet ops")
	if word := strings.TrimPrefix(to, "/link/"); strings.Contains(open.body, word) {
		t.Error("the list has the link itself")
	}
	set := guest.submit(to, to).leaves(t)
	ops.get("/links").want(t, 200, "Acme acme connecting sign-in begun ops")
	withdraw := withdrawRe.FindStringSubmatch(open.body)[1]
	guest.raw(withdraw, url.Values{}, nil).want(t, 401)
	ops.follow(ops.submit("/links", withdraw)).want(t, 200, "The link is withdrawn", "No open links")
	guest.get(to).want(t, 410, "not valid", "withdrawn")
	before := c.exchanges()
	guest.get(guest.accept(set, ada)).want(t, 410, "not valid")
	if c.exchanges() != before {
		t.Error("the code was exchanged")
	}
	form := formRe.FindStringSubmatch(ops.get("/connect").body)[1]
	ops.follow(ops.raw(withdraw, url.Values{"form": {form}}, nil)).want(t, 200, "good no more")

	// One in use is not given back where nothing comes of that, and a used one stays used.
	admin := c.person()
	admin.user = ops.user
	admin.connect("Ada", ada)
	to = made("Hooli")
	withdraw = withdrawRe.FindStringSubmatch(ops.get("/links").body)[1]
	decide := guest.get(guest.accept(guest.submit(to, to).leaves(t), ada))
	ops.get("/links").want(t, 200, "No open links")
	ops.follow(ops.raw(withdraw, url.Values{"form": {form}}, nil)).want(t, 200, "Somebody has used that link")
	consentOf := strings.TrimPrefix(decide.location, "/oauth/decide?consent=")
	guest.follow(guest.submit(decide.location, "/oauth/decide", "consent", consentOf, "do", "cancel")).want(t, 200, "Nothing was changed")
	guest.get(to).want(t, 410, "not valid", "withdrawn")
	to = made("Globex")
	withdraw = withdrawRe.FindStringSubmatch(ops.get("/links").body)[1]
	guest.follow(guest.get(guest.accept(guest.submit(to, to).leaves(t), grace))).want(t, 200, "Globex is connected")
	ops.follow(ops.raw(withdraw, url.Values{"form": {form}}, nil)).want(t, 200, "Somebody has used that link")
	c.record("globex")
}
