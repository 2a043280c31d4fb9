package zohotest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	demoOrg  = "60001"
	demoUser = "5725767000000411001"
)

// clock is settable, and goes only when told to.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// box is a server with an org, a user and a grant, on a real listener.
type box struct {
	*Server
	t       testing.TB
	clock   *clock
	http    *httptest.Server
	client  *http.Client
	refresh string
	access  string
}

func newBox(t testing.TB, adjust ...func(*Options, *Org)) *box {
	t.Helper()
	b := &box{t: t, clock: &clock{at: time.Date(2026, 5, 10, 1, 10, 47, 0, time.FixedZone("", -7*3600))}}
	o := Options{Now: b.clock.now, ClientID: "1000.CLIENT", ClientSecret: "the-client-secret"}
	org := Org{ID: demoOrg, Name: "Demo"}
	for _, f := range adjust {
		f(&o, &org)
	}
	b.Server = New(o)
	b.AddOrg(org)
	b.AddUser(User{ID: demoUser, Email: "patricia@demo.example", Name: "Patricia Boyle", OrgID: demoOrg})
	b.refresh = b.GrantRefreshToken(demoUser)
	b.access = b.AccessToken(b.refresh)
	b.http = httptest.NewServer(b)
	b.client = &http.Client{
		Transport:     &http.Transport{MaxIdleConnsPerHost: 100},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	t.Cleanup(func() {
		b.Close()
		b.client.CloseIdleConnections()
		b.http.Close()
	})
	return b
}

type reply3 struct {
	status int
	header http.Header
	body   string
}

func (b *box) try(method, target, body string, header ...string) (reply3, error) {
	r, err := http.NewRequest(method, b.http.URL+target, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if strings.HasPrefix(target, "/crm/") {
		r.Header.Set("Authorization", "Zoho-oauthtoken "+b.access)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if r.Header.Set(header[i], header[i+1]); header[i+1] == "" {
			r.Header.Del(header[i])
		}
	}
	res, err := b.client.Do(r)
	if err != nil {
		return reply3{}, err
	}
	defer func() { _ = res.Body.Close() }()
	got, err := io.ReadAll(res.Body)
	return reply3{res.StatusCode, res.Header, string(got)}, err
}

func (b *box) call(method, target, body string, header ...string) reply3 {
	b.t.Helper()
	got, err := b.try(method, target, body, header...)
	if err != nil {
		b.t.Fatalf("%s %s: %v", method, target, err)
	}
	return got
}

// refreshWith asks for an access token.
func (b *box) refreshWith(token string, change ...string) reply3 {
	b.t.Helper()
	form := url.Values{
		"grant_type": {"refresh_token"}, "client_id": {"1000.CLIENT"}, "client_secret": {"the-client-secret"}, "refresh_token": {token},
	}
	for i := 0; i+1 < len(change); i += 2 {
		form.Set(change[i], change[i+1])
	}
	return b.call("POST", "/oauth/v2/token", form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
}

// same compares JSON whatever the order of its members.
func same(t testing.TB, got, want string) {
	t.Helper()
	var g, w any
	if err := json.Unmarshal([]byte(got), &g); err != nil {
		t.Fatalf("not JSON: %q", got)
	}
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	gb, _ := json.Marshal(g)
	wb, _ := json.Marshal(w)
	if !bytes.Equal(gb, wb) {
		t.Errorf("got  %s\nwant %s", gb, wb)
	}
}

func (r reply3) want(t testing.TB, status int, body string) {
	t.Helper()
	if r.status != status {
		t.Errorf("status %d, want %d: %s", r.status, status, r.body)
	}
	if body == "" {
		if r.body != "" {
			t.Errorf("body %q, want none", r.body)
		}
		return
	}
	same(t, r.body, body)
}

// part looks a value up in a JSON body, by member names and indexes.
func (r reply3) part(t testing.TB, path ...any) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(r.body), &v); err != nil {
		t.Fatalf("not JSON: %q", r.body)
	}
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[p]
		case int:
			a, _ := v.([]any)
			if p >= len(a) {
				t.Fatalf("no %v in %s", path, r.body)
			}
			v = a[p]
		}
	}
	return v
}
