package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/crypto/bcrypt"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/event"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
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

// consoleRig is a rig with a worker that has a console.
type consoleRig struct {
	*rig
	worker *app.Worker
	base   string
}

func newConsole(t *testing.T, change ...func(*app.Config)) *consoleRig {
	t.Helper()
	r := newRig(t, zohotest.Options{})
	r.Zoho.AddOrg(zohotest.Org{ID: devbox.OrgID, Name: "Analytical Engines", Concurrency: 10, Edition: "professional"})
	r.Zoho.AddOrg(zohotest.Org{ID: euOrg, Name: "Northwind Europe", Concurrency: 10})
	r.Zoho.AddOrg(zohotest.Org{ID: otherOrg, Name: "Elsewhere", Concurrency: 10})
	r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Seed"})
	r.Zoho.AddUser(zohotest.User{ID: ada, Name: "Ada Lovelace", Email: "ada@example.com", OrgID: devbox.OrgID})
	r.Zoho.AddUser(zohotest.User{ID: grace, Name: "Grace Hopper", Email: "grace@example.com", OrgID: devbox.OrgID})
	r.Zoho.AddUser(zohotest.User{ID: elif, Name: "Elif Yılmaz", Email: "elif@example.eu", OrgID: euOrg, Location: "eu"})
	r.Zoho.AddUser(zohotest.User{ID: "user-other", Name: "Max Elsewhere", OrgID: otherOrg})
	c := &consoleRig{rig: r}
	c.worker = r.worker(append([]func(*app.Config){func(c *app.Config) { c.ConsoleAuth = "none" }}, change...)...)
	c.base = "http://" + c.worker.HTTPAddr
	return c
}

// person is somebody at a browser, which follows no redirects by itself.
type person struct {
	t      testing.TB
	base   string
	client *http.Client
	user   *url.Userinfo
	pages  *[]string // every page that was seen
}

var (
	seenMu sync.Mutex
	formRe = regexp.MustCompile(`name="form" value="([^"]+)"`)
)

func (c *consoleRig) person() *person {
	jar, _ := cookiejar.New(nil)
	return &person{t: c.t, base: c.base, pages: &[]string{}, client: &http.Client{
		Jar: jar, Timeout: patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

type answer struct {
	status   int
	body     string
	header   http.Header
	location string
}

func (p *person) do(req *http.Request) answer {
	p.t.Helper()
	if p.user != nil && strings.HasPrefix(req.URL.String(), p.base) {
		password, _ := p.user.Password()
		req.SetBasicAuth(p.user.Username(), password)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	if strings.HasPrefix(req.URL.String(), p.base) {
		seenMu.Lock()
		*p.pages = append(*p.pages, req.URL.Path+"\n"+fmt.Sprint(resp.Header)+"\n"+string(body))
		seenMu.Unlock()
	}
	return answer{resp.StatusCode, string(body), resp.Header, resp.Header.Get("Location")}
}

func (p *person) get(to string) answer {
	p.t.Helper()
	if strings.HasPrefix(to, "/") {
		to = p.base + to
	}
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, to, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.do(req)
}

func (p *person) raw(to string, form url.Values, header http.Header) answer {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.base+to, strings.NewReader(form.Encode()))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for name, values := range header {
		req.Header[name] = values
	}
	return p.do(req)
}

// submit fills in the form on a page, whose token it takes, and sends it.
func (p *person) submit(page, to string, pairs ...string) answer {
	p.t.Helper()
	got := p.get(page)
	found := formRe.FindStringSubmatch(got.body)
	if found == nil {
		p.t.Fatalf("no form on %s: %d %s", page, got.status, text(got.body))
	}
	form := url.Values{"form": {found[1]}}
	for i := 0; i < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	return p.raw(to, form, nil)
}

// text is a page without its markup.
func text(body string) string {
	body = regexp.MustCompile(`(?s)<(script|style|svg).*?</(script|style|svg)>`).ReplaceAllString(body, " ")
	return html.UnescapeString(strings.Join(strings.Fields(regexp.MustCompile(`<[^>]*>`).ReplaceAllString(body, " ")), " "))
}

func (a answer) want(t testing.TB, status int, contains ...string) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, text(a.body))
	}
	for _, s := range contains {
		if !strings.Contains(text(a.body), s) {
			t.Fatalf("the page does not say %q: %s", s, text(a.body))
		}
	}
	return a
}

// begin sends the form to connect and returns the address of Zoho's page.
func (p *person) begin(nickname string, pairs ...string) string {
	p.t.Helper()
	got := p.submit("/connect", "/connect", append([]string{"nickname", nickname, "environment", "production"}, pairs...)...)
	return got.leaves(p.t)
}

var leaveRe = regexp.MustCompile(`http-equiv="refresh" content="0; url=([^"]+)"`)

// leaves is where a page leads by itself.
func (a answer) leaves(t testing.TB) string {
	t.Helper()
	a.want(t, 200, "On the way to Zoho")
	found := leaveRe.FindStringSubmatch(a.body)
	if found == nil {
		t.Fatalf("the page leads nowhere: %s", a.body)
	}
	return html.UnescapeString(found[1])
}

// accept is the click at Zoho; it returns the callback's address.
func (p *person) accept(zoho, user string) string {
	p.t.Helper()
	return p.get(zoho+"&approve="+user).want(p.t, http.StatusFound).location
}

// connect goes the whole way.
func (p *person) connect(nickname, user string) answer {
	p.t.Helper()
	return p.get(p.accept(p.begin(nickname), user))
}

// follow reads the page that an answer leads to.
func (p *person) follow(a answer) answer {
	p.t.Helper()
	if a.status != http.StatusSeeOther {
		p.t.Fatalf("status %d, want a redirect: %s", a.status, text(a.body))
	}
	return p.get(a.location)
}

func (c *consoleRig) exchanges() int {
	return c.Zoho.Count(zohotest.Match{Endpoint: zohotest.Token, Where: func(call zohotest.Call) bool { return call.GrantType == "authorization_code" }})
}

func (c *consoleRig) revocations() int {
	return c.Zoho.Count(zohotest.Match{Endpoint: zohotest.Accounts, Path: "/oauth/v2/token/revoke", Where: func(call zohotest.Call) bool { return call.Code == "success" }})
}

func (c *consoleRig) record(name string) *connection.Connection {
	c.t.Helper()
	record, err := c.store.Fetch(c.t.Context(), name)
	if err != nil {
		c.t.Fatal(err)
	}
	return record
}

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

	decide := p.connect("Acme again", ada)
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

// rerouted sends what is for one address to another, as a load balancer would.
type rerouted struct{ from, to string }

func (r rerouted) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == r.from {
		req = req.Clone(req.Context())
		req.Host, req.URL.Host = r.from, r.to
	}
	return http.DefaultTransport.RoundTrip(req)
}

// events collects what is published on zoho.events.<name>.
func (c *consoleRig) events(name string) func() []event.Event {
	c.t.Helper()
	return func() []event.Event {
		stream, err := c.js.Stream(c.t.Context(), "ZOHO_EVENTS")
		if err != nil {
			c.t.Fatal(err)
		}
		var all []event.Event
		for sequence := uint64(1); ; sequence++ {
			msg, err := stream.GetMsg(c.t.Context(), sequence, jetstream.WithGetMsgSubject("zoho.events."+name))
			if err != nil {
				return all
			}
			sequence = msg.Sequence
			var e event.Event
			if err := json.Unmarshal(msg.Data, &e); err != nil {
				c.t.Fatal(err)
			}
			all = append(all, e)
		}
	}
}

func names(events []event.Event) []string {
	var all []string
	for _, e := range events {
		all = append(all, e.Event)
	}
	return all
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
}

func basic(t *testing.T) func(*app.Config) {
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), 10)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *app.Config) {
		c.ConsoleAuth, c.ConsoleUsers = "basic", secret.New("ops:"+string(hash))
		c.HTTPAddr = free(t)
		c.PublicURL = "http://" + c.HTTPAddr
	}
}

// A one-time link connects one account, once, and shows nothing else.
func TestConsoleShare(t *testing.T) {
	t.Parallel()
	c := newConsole(t, basic(t))
	ops, guest := c.person(), c.person()
	ops.user = url.UserPassword("ops", "right")
	got := ops.submit("/connect", "/connect", "nickname", "Acme", "environment", "production", "how", "link").want(t, 200, "A link to send")
	link := regexp.MustCompile(`http[^"]+/link/[A-Za-z0-9_-]+`).FindString(got.body)
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

// Who asks from elsewhere, without a sign-in, or without the form's token, gets nothing.
func TestConsoleGuards(t *testing.T) {
	t.Parallel()
	c := newConsole(t, basic(t))
	ops := c.person()
	ops.user = url.UserPassword("ops", "right")
	page := ops.get("/").want(t, 200)
	for name, want := range map[string]string{
		"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store",
	} {
		if got := page.header.Get(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	policy := page.header.Get("Content-Security-Policy")
	if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") || !strings.Contains(policy, "form-action 'self';") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	for _, cookie := range page.header.Values("Set-Cookie") {
		if !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=Lax") {
			t.Errorf("cookie %s", cookie)
		}
	}

	form := url.Values{"nickname": {"x"}, "environment": {"production"}}
	ops.raw("/connect", form, nil).want(t, 403, "no longer good")
	other := c.person()
	other.user = ops.user
	stolen := formRe.FindStringSubmatch(other.get("/connect").body)[1]
	form.Set("form", stolen)
	ops.raw("/connect", form, nil).want(t, 403, "no longer good") // another browser's
	form.Set("form", formRe.FindStringSubmatch(ops.get("/connect").body)[1])
	ops.raw("/connect", form, http.Header{"Origin": {"https://evil.example"}}).want(t, 403, "another site")
	ops.raw("/connect", form, http.Header{"Sec-Fetch-Site": {"cross-site"}}).want(t, 403, "another site")
	ops.raw("/connect", form, http.Header{"Origin": {c.base}, "Sec-Fetch-Site": {"same-origin"}}).leaves(t)

	req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, c.base+"/", nil)
	req.Host = "evil.example"
	ops.do(req).want(t, 421, "another address")

	stranger := c.person()
	for _, path := range []string{"/", "/connect", "/connections/x", "/connections/x/disconnect", "/connections/x/reauthorize", "/nothing"} {
		if got := stranger.get(path); got.status != 401 && path != "/nothing" || strings.Contains(got.body, "Connect an account") {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	stranger.user = url.UserPassword("ops", "wrong")
	limited := 0
	for range 30 {
		if got := stranger.get("/"); got.status == 429 {
			limited++
		} else if got.status != 401 {
			t.Fatalf("status %d", got.status)
		}
	}
	if limited < 15 {
		t.Errorf("%d of 30 were limited", limited)
	}
	ops.get("/").want(t, 200) // who is signed in goes on

	for path, want := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 200} {
		if got := c.person().get(path); got.status != want {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	off := c.rig.worker()
	for _, path := range []string{"/", "/oauth/callback?state=x&code=y", "/link/x", "/static/console.css"} {
		if got := c.person().get("http://" + off.HTTPAddr + path); got.status != 404 {
			t.Errorf("without a console, %s: %d", path, got.status)
		}
	}
}

// Everything that a person, an operator or a listener can see is searched for
// what has to stay secret.
func TestConsoleKeepsSecrets(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	zoho := p.begin("Acme")
	back := p.accept(zoho, ada)
	u, _ := url.Parse(back)
	state, code := u.Query().Get("state"), u.Query().Get("code")
	p.follow(p.get(back))
	p.get(back)
	p.follow(p.connect("Again", ada))
	p.submit("/connections/acme", "/connections/acme/test")
	p.submit("/connections/acme", "/connections/acme/share")
	keyring, _ := secret.ParseKeyring(c.keys.Reveal())
	refresh, err := c.record("acme").RefreshToken(keyring)
	if err != nil {
		t.Fatal(err)
	}
	c.Zoho.RevokeRefreshToken(refresh.Reveal())
	c.publish("acme", list("one"))
	eventually(t, "the connection is revoked", func() bool { return c.record("acme").Status == connection.Revoked })
	for _, path := range []string{"/", "/connections/acme", "/connections/acme/reauthorize", "/connections/acme/disconnect", "/connect"} {
		p.get(path)
	}
	p.submit("/connections/acme/disconnect", "/connections/acme/disconnect")
	p.get("/")

	_, key, _ := strings.Cut(c.keys.Reveal(), ":")
	secrets := []string{refresh.Reveal(), code, state, key, "test-secret"}
	tokens := regexp.MustCompile(`1000\.[0-9a-f]{32}\.[0-9a-f]{32}`) // every code and token of the simulator
	search := func(where, what string) {
		for i, s := range secrets {
			if strings.Contains(what, s) {
				t.Errorf("secret %d is in %s", i, where)
			}
		}
		if found := tokens.FindString(what); found != "" {
			t.Errorf("a token is in %s: %s", where, found[:12])
		}
	}
	for _, page := range *p.pages {
		path, _, _ := strings.Cut(page, "\n")
		if path == "/connect" || path == "/oauth/callback" || strings.HasSuffix(path, "/reauthorize") {
			page = strings.ReplaceAll(page, state, "") // it travels by the browser, in the address of Zoho's page
		}
		search("page "+path, page)
	}
	search("the log", c.logs.text.String())
	search("the metrics", c.person().get("/metrics").body)
	for _, stream := range []string{"ZOHO_EVENTS", "ZOHO_CONNECTIONS", "ZOHO_TOKENS", consent.StreamName, "ZOHO_RESPONSES", "ZOHO_DEAD"} {
		s, err := c.js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		for sequence := uint64(1); sequence <= s.CachedInfo().State.LastSeq; sequence++ {
			if msg, err := s.GetMsg(t.Context(), sequence); err == nil {
				search(stream, msg.Subject+" "+fmt.Sprint(msg.Header)+" "+string(msg.Data))
			}
		}
	}
}

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

// A key that is missing locks the connections sealed with it, says so, and no others.
func TestConsoleLocked(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.follow(p.connect("Acme", ada)).want(t, 200, "is connected")
	other := c.rig.worker(func(config *app.Config) {
		config.ConsoleAuth = "none"
		config.EncryptionKeys = secret.New(strings.Replace(secret.Generate().Reveal(), "dev:", "other:", 1))
	})
	elsewhere := c.person()
	elsewhere.base = "http://" + other.HTTPAddr
	elsewhere.get("/").want(t, 200, "Locked", `sealed with key "dev", which is not among the encryption keys`, "Re-authorize")
	zoho := elsewhere.submit("/connections/acme/reauthorize", "/connections/acme/reauthorize").leaves(t)
	elsewhere.follow(elsewhere.get(elsewhere.accept(zoho, ada))).want(t, 200, "connected again")
	elsewhere.get("/").want(t, 200, "1 connected")
}

func free(t *testing.T) string {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	addr := server.Listener.Addr().String()
	server.Close()
	return addr
}
