package console

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
)

// newPages is a console with nothing behind it.
func newPages(t *testing.T, change ...func(*Options)) *Console {
	t.Helper()
	keyring, err := secret.ParseKeyring(secret.Generate().Reveal())
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Keyring: keyring, PublicURL: "http://127.0.0.1", Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// once is a listener with one connection.
type once struct {
	conn net.Conn
	end  chan struct{}
}

func (o *once) Accept() (net.Conn, error) {
	if conn := o.conn; conn != nil {
		o.conn = nil
		return conn, nil
	}
	<-o.end
	return nil, net.ErrClosed
}
func (o *once) Close() error   { close(o.end); return nil }
func (o *once) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

// A page that waits for Zoho has longer than the server gives an answer, but not for ever:
// a browser that does not take it lets go.
func TestPagesHaveTheirTime(t *testing.T) {
	t.Parallel()
	for name, taken := range map[string]bool{"taken": true, "not taken": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var closed atomic.Bool
				server := &http.Server{
					WriteTimeout: 30 * time.Second, // a worker's
					Handler: newPages(t).guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
						time.Sleep(100 * time.Second) // a consent that takes its time
						_, _ = io.WriteString(w, strings.Repeat("whole", 1000))
					})),
					ConnState: func(_ net.Conn, state http.ConnState) { closed.Store(state == http.StateClosed) },
				}
				client, conn := net.Pipe()
				defer client.Close()
				go func() { _ = server.Serve(&once{conn, make(chan struct{})}) }()
				defer server.Close()
				_, _ = io.WriteString(client, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
				if taken {
					answer, err := http.ReadResponse(bufio.NewReader(client), nil)
					if err != nil {
						t.Fatal(err)
					}
					if body, err := io.ReadAll(answer.Body); len(body) != 5000 {
						t.Errorf("%d bytes of the page: %v", len(body), err)
					}
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				if closed.Load() == taken {
					t.Errorf("an hour later the connection is closed: %v", closed.Load())
				}
			})
		})
	}
}

var formToken = regexp.MustCompile(`name="form" value="([^"]+)"`)

// A form is good for twelve hours after its page was opened, whenever the browser came
// first, and whatever other tabs it opened at the same time then.
func TestFormsOfABrowser(t *testing.T) {
	t.Parallel()
	now := time.Now()
	c := newPages(t, func(o *Options) { o.Now, o.Connections = func() time.Time { return now }, &connection.Store{} })
	pages := c.Handler()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	home := &url.URL{Scheme: "http", Host: "127.0.0.1", Path: "/"}
	ask := func(method, body string, cookies []*http.Cookie) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), method, "http://127.0.0.1/connect", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for _, cookie := range cookies {
			r.AddCookie(cookie)
		}
		w := httptest.NewRecorder()
		pages.ServeHTTP(w, r)
		jar.SetCookies(home, w.Result().Cookies())
		return w
	}
	open := func(cookies []*http.Cookie) string {
		return formToken.FindStringSubmatch(ask(http.MethodGet, "", cookies).Body.String())[1]
	}
	send := func(form string) int {
		return ask(http.MethodPost, url.Values{"form": {form}}.Encode(), jar.Cookies(home)).Code
	}
	const taken, refused = http.StatusUnprocessableEntity, http.StatusForbidden // without a nickname
	open(nil)
	now = now.Add(11*time.Hour + 59*time.Minute)
	form := open(jar.Cookies(home))
	now = now.Add(2 * time.Minute)
	if got := send(form); got != taken {
		t.Errorf("a form that was open for two minutes, half a day after the first: %d", got)
	}
	now = now.Add(12 * time.Hour)
	if got := send(form); got != refused {
		t.Errorf("a form that was open for half a day: %d", got)
	}
	now = now.Add(7 * 24 * time.Hour)
	before := jar.Cookies(home) // two tabs ask at once
	one, two := open(before), open(before)
	if first, second := send(one), send(two); first != taken || second != taken {
		t.Errorf("forms of two tabs that were opened at once: %d and %d", first, second)
	}
}

// Behind https a cookie is this host's alone, and each is good for one thing, for its
// time, to workers with the same keys.
func TestSealedCookies(t *testing.T) {
	t.Parallel()
	now := time.Now()
	https := func(o *Options) { o.PublicURL, o.Now = "https://console.example", func() time.Time { return now } }
	c := newPages(t, https)
	w := httptest.NewRecorder()
	c.setCookie(w, "session", session{Email: "ada@example.com"}, time.Hour)
	c.dropCookie(w, "session")
	cookies := w.Result().Cookies()
	for _, cookie := range cookies {
		if cookie.Name != "__Host-zoho-session" || !cookie.Secure || !cookie.HttpOnly || cookie.SameSite != http.SameSiteLaxMode || cookie.Path != "/" || cookie.Domain != "" {
			t.Errorf("cookie %s", cookie)
		}
	}
	email := func(c *Console, name, value string) string {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://console.example/", nil)
		r.AddCookie(&http.Cookie{Name: c.cookieName(name), Value: value})
		var s session
		c.cookie(r, name, &s)
		return s.Email
	}
	if got := email(c, "session", cookies[0].Value); got != "ada@example.com" {
		t.Errorf("it is %q", got)
	}
	if got := email(c, "flash", cookies[0].Value); got != "" {
		t.Error("it passes for another cookie")
	}
	if got := email(newPages(t, https), "session", cookies[0].Value); got != "" {
		t.Error("it passes with other keys")
	}
	now = now.Add(time.Hour)
	if got := email(c, "session", cookies[0].Value); got != "" {
		t.Error("it passes after its time")
	}
	for host, want := range map[string]int{"console.example": 404, "CONSOLE.example:443": 404, "console.example:80": 421, "console.example.evil.example": 421, "": 421} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "https://console.example/nothing", nil)
		r.Host = host
		w := httptest.NewRecorder()
		c.Handler().ServeHTTP(w, r)
		if w.Code != want || w.Header().Get("Strict-Transport-Security") == "" {
			t.Errorf("host %q: %d, %v", host, w.Code, w.Header())
		}
	}
}

var asset = regexp.MustCompile(`(?:href|src)="(/[^"]*)"`)

// Who opens the console under another name for its address is told so by a page that can
// be read: the style comes from that name too.
func TestPageOfAnotherHostHasItsStyle(t *testing.T) {
	t.Parallel()
	pages := newPages(t, func(o *Options) { o.PublicURL = "http://localhost:8081" }).Handler()
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		pages.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:8081"+path, nil))
		return w
	}
	page := get("/")
	assets := asset.FindAllStringSubmatch(page.Body.String(), -1)
	if page.Code != http.StatusMisdirectedRequest || len(assets) == 0 {
		t.Fatalf("%d with %d assets: %s", page.Code, len(assets), page.Body)
	}
	for _, a := range assets {
		if got := get(a[1]); got.Code != http.StatusOK {
			t.Errorf("%s: %d", a[1], got.Code)
		}
	}
}
