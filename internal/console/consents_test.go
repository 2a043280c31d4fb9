package console

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
)

// A callback that comes while JetStream is away is as good when it is back: the browser
// keeps what binds it, and is led to the same address once more.
func TestCallbackWhileStorageIsAway(t *testing.T) {
	t.Parallel()
	server := natstest.Start(t)
	js := server.JetStream()
	server.Create(js, consent.StreamConfig(1))
	accounts := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"error":"invalid_code"}`)
	}))
	defer accounts.Close()
	client, err := zoho.New(zoho.Config{ClientID: "1000.TEST", ClientSecret: secret.New("test"), AccountsURL: accounts.URL, APIURL: accounts.URL})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	quiet := slog.New(slog.DiscardHandler)
	c := newPages(t, func(o *Options) {
		o.Consents = consent.New(consent.Options{JS: js, Keyring: o.Keyring, Zoho: client, Logger: quiet})
	})
	begun, err := c.Consents.Begin(t.Context(), consent.Pending{Kind: consent.Connect, Name: "acme", Environment: connection.Production})
	if err != nil {
		t.Fatal(err)
	}
	bound := httptest.NewRecorder()
	c.bind(bound, begun.State)
	query := url.Values{"state": {begun.State}, "code": {"1000.a.b"}, "location": {"us"}, "accounts-server": {accounts.URL}}
	comes := func(ctx context.Context) (page string, dropped bool) {
		r := httptest.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1"+CallbackPath+"?"+query.Encode(), nil)
		for _, cookie := range bound.Result().Cookies() {
			r.AddCookie(cookie)
		}
		w := httptest.NewRecorder()
		c.Handler().ServeHTTP(w, r)
		return w.Body.String(), strings.Contains(w.Header().Get("Set-Cookie"), "Max-Age=0")
	}
	server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	page, dropped := comes(ctx)
	cancel()
	if !strings.Contains(page, "That did not work") || !strings.Contains(page, `href="">Try again<`) || dropped {
		t.Errorf("while it is away: the browser is unbound: %v: %s", dropped, page)
	}
	server.Restart()
	if page, dropped := comes(t.Context()); !strings.Contains(page, "code has expired") || !dropped {
		t.Errorf("when it is back: the browser is unbound: %v: %s", dropped, page)
	}
}
