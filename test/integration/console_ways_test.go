package integration

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
)

var linkRe = regexp.MustCompile(`http[^"]+/link/[A-Za-z0-9_-]+`)

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
	c := newConsole(t, idp.signsIn(t, "@example.com"))
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

// A sign-in that came to nothing leads to where it is begun anew, filled in as it was; who
// came by a link is told that it is good, and is offered nothing of the console.
func TestConsoleWaysToBeginAgain(t *testing.T) {
	t.Parallel()
	c := newConsole(t)
	p := c.person()
	denied := func(p *person, zoho string) answer { return p.get(p.get(zoho + "&deny=1").location) }
	again := "/connect?environment=sandbox&amp;location=us&amp;name=acme&amp;nickname=Acme&#43;sales"
	denied(p, p.begin("Acme sales", "name", "acme", "location", "us", "environment", "sandbox")).want(t, 400, "Access was not given").leadsTo(t, again, "Begin again")
	form := p.get("/connect?environment=sandbox&location=us&name=acme&nickname=Acme+sales").want(t, 200)
	for _, field := range []string{`value="Acme sales"`, `value="acme"`, `value="us" selected`, `value="sandbox" checked`} {
		if !strings.Contains(form.body, field) {
			t.Errorf("the form has no %s", field)
		}
	}
	elsewhere := p.get(p.accept(p.begin("Europe", "location", "us"), elif)).want(t, 400, "another data centre")
	elsewhere.leadsTo(t, "/connect?environment=production&amp;location=eu&amp;name=europe&amp;nickname=Europe", "Connect at Europe")

	p.connect("Globex", grace).want(t, 303)
	page := "/connections/globex/reauthorize"
	denied(p, p.submit(page, page).leaves(t)).want(t, 400).leadsTo(t, page, "Begin again")
	p.get("/oauth/callback?state=nothing&code=x").want(t, 400, "can't be completed").leadsTo(t, c.base+"/", "Open the console")

	shared := p.submit("/connect", "/connect", "nickname", "Shared", "environment", "production", "location", "us", "how", "link").want(t, 200)
	link := strings.TrimPrefix(linkRe.FindString(shared.body), c.base)
	guest := c.person()
	for _, got := range []answer{
		denied(guest, guest.submit(link, link).leaves(t)).want(t, 400, "Access was not given", "still good: open it again"),
		guest.get(guest.accept(guest.submit(link, link).leaves(t), elif)).want(t, 400, "another data centre", "still good: open it again"),
	} {
		if strings.Contains(got.body, `href="/connect`) || strings.Contains(got.body, `class="button`) {
			t.Errorf("a guest is offered the console: %s", text(got.body))
		}
	}
	guest.get(guest.accept(guest.submit(link, link).leaves(t), ada)).want(t, 303)
}
