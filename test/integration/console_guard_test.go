package integration

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/secret"
)

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
	ops.raw("/connect", form, http.Header{"Referer": {c.base + "/connect"}}).want(t, 403, "no longer good").leadsTo(t, "/connect", "Load the page again")
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
	for _, path := range []string{"/", "/connect", "/connections/x", "/connections/x/disconnect", "/connections/x/reauthorize", "/links", "/nothing"} {
		if got := stranger.get(path); got.status != 401 && path != "/nothing" || strings.Contains(got.body, "Connect an account") {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	stranger.user = url.UserPassword("ops", "wrong")
	// However slow this machine is with the tries, they are limited in the end.
	limited := false
	for range 300 {
		got := stranger.get("/")
		if limited = got.status == 429; limited {
			break
		}
		if got.status != 401 {
			t.Fatalf("status %d", got.status)
		}
	}
	if !limited {
		t.Error("somebody may guess passwords for ever")
	}
	ops.get("/").want(t, 200) // who is signed in goes on

	for path, want := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 200} {
		if got := c.person().get(path); got.status != want {
			t.Errorf("%s: %d", path, got.status)
		}
	}
	off := c.rig.worker()
	for _, path := range []string{"/", "/oauth/callback?state=x&code=y", "/link/x", "/static/console.css"} {
		if got := c.person().get("http://" + off.HTTPAddr + path); got.status != 404 || !strings.Contains(got.body, "--console-auth") {
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
