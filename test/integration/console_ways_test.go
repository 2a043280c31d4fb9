package integration

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"zoho-worker/internal/app"
	"zoho-worker/internal/secret"
)

// leadsTo fails where a page has no link there, of that text.
func (a answer) leadsTo(t testing.TB, to, text string) {
	t.Helper()
	if link := `href="` + to + `">` + text + `<`; !strings.Contains(a.body, link) {
		t.Errorf("the page has no %s: %s", link, a.body)
	}
}

// Nobody is left on a page without a way on.
func TestConsoleWaysOn(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	p.connect("Acme", ada).want(t, 303)
	p.get("/nowhere").want(t, 404, "no such page").leadsTo(t, c.base+"/", "Open the console")
	p.get("/connections/none").want(t, 404, "no such connection").leadsTo(t, "/", "Back to the connections")

	// The address that a button leaves in the bar, sent once more.
	for _, what := range []string{"test", "share"} {
		if got := p.get("/connections/acme/" + what); got.status != 303 || got.location != "/connections/acme" {
			t.Errorf("%s: %d %s", what, got.status, got.location)
		}
	}

	// A record that nobody can read: there is nothing to sign in to, and no empty page.
	if _, err := c.js.Publish(t.Context(), "zoho.connections.junk", []byte("{")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the record is there", func() bool { return p.get("/connections/junk").status == http.StatusOK })
	page := p.get("/connections/junk").want(t, 200, "Unreadable")
	for _, button := range []string{"/connections/junk/share", "/connections/junk/reauthorize", "/connections/junk/test"} {
		if strings.Contains(page.body, button) {
			t.Errorf("the page offers %s", button)
		}
	}
	p.get("/connections/junk/reauthorize").want(t, 409, "can't be read", "Disconnect it")
	for _, to := range []string{"share", "reauthorize"} {
		p.submit("/connect", "/connections/junk/"+to).want(t, 409, "can't be read").leadsTo(t, "/connections/junk", "Back to the connection")
	}
}

// Who is signed out, or was for too long, finds the way in again.
func TestConsoleWaysIn(t *testing.T) {
	t.Parallel()
	idp := newProvider(t)
	c := newConsole(t, func(config *app.Config) {
		config.HTTPAddr = free(t)
		config.ConsoleAuth, config.PublicURL = "oidc", "http://"+config.HTTPAddr
		config.OIDCIssuer, config.OIDCClientID, config.OIDCClientSecret = idp.URL, "console", secret.New("oidc-secret")
		config.OIDCAllowed = []string{"@example.com"}
	})
	p := c.person()
	u, err := url.Parse(p.get("/").want(t, 303).location)
	if err != nil {
		t.Fatal(err)
	}
	idp.nonce, idp.email = u.Query().Get("nonce"), "ada@example.com"
	p.get("/auth/callback?code=c&state="+url.QueryEscape(u.Query().Get("state"))).want(t, 303)

	stranger := c.person()
	for referer, to := range map[string]string{
		c.base + "/dead?code=internal": "/dead?code=internal",
		"https://else.example/dead":    c.base + "/",
		c.base + "//else.example":      "/",
		"":                             c.base + "/",
	} {
		stranger.raw("/connect", url.Values{}, http.Header{"Referer": {referer}}).want(t, 401, "Your session has ended").leadsTo(t, to, "Sign in")
	}
	stranger.get("/auth/callback?code=c&state=x").want(t, 403).leadsTo(t, c.base+"/", "Sign in")

	out := p.submit("/connect", "/auth/signout").want(t, 200, "You are signed out")
	out.leadsTo(t, c.base+"/", "Sign in")
	if strings.Contains(out.body, "ada@example.com") || strings.Contains(out.body, "Sign out") || strings.Contains(out.body, "<nav") {
		t.Errorf("still shown as signed in: %s", out.body)
	}
}
