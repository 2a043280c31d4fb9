package integration

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/crypto/bcrypt"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/event"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
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

func free(t *testing.T) string {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	addr := server.Listener.Addr().String()
	server.Close()
	return addr
}
