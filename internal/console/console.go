// Package console is the pages where people connect Zoho accounts and see how
// their connections are: server-rendered, whole without JavaScript, live with it.
//
// It makes no decisions about grants: package consent does; it knows no
// requests: what it shows of queues it reads, bounded and cached.
//
// Invariants: every page but the callback, a one-time link and what follows
// from them needs a signed-in person (Auth); every change is a POST from this
// very site with a token that belongs to the browser; nothing is kept in memory
// that another worker would miss, so any worker may answer any request; no page
// has a token, a code or a key in it, except the one that shows a new one-time
// link to whoever made it.
package console

import (
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
	"zoho-worker/internal/zoho"
)

// Options of a Console. Those without a default are required.
type Options struct {
	JS          jetstream.JetStream
	Keyring     *secret.Keyring
	Connections *connection.Store
	Consents    *consent.Flow
	Tokens      *token.Source
	Zoho        *zoho.Client
	// PublicURL is how a browser reaches the console; requests for other hosts
	// are refused.
	PublicURL string
	// Auth says who may see the console. Nil: everybody, for development.
	Auth    Auth
	Version string
	// Now defaults to time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Console serves the pages.
type Console struct {
	Options
	public *url.URL
	secure bool // cookies travel by https only
	pages  *pages
	board  *board
	// guests bounds what strangers may have looked up in JetStream.
	guests *rate.Limiter
}

// CallbackPath is where Zoho sends browsers back to: it stands in Zoho's API
// console, behind the public URL.
const CallbackPath = "/oauth/callback"

// RedirectURI is the whole address of the callback.
func RedirectURI(publicURL string) string { return strings.TrimSuffix(publicURL, "/") + CallbackPath }

// New returns a console.
func New(o Options) (*Console, error) {
	public, err := url.Parse(o.PublicURL)
	if err != nil || public.Host == "" || public.Scheme != "http" && public.Scheme != "https" {
		return nil, errors.New("console: the public URL must be an http or https address")
	}
	if strings.Trim(public.Path, "/") != "" {
		return nil, errors.New("console: the public URL must have no path: the console wants a host of its own")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Auth == nil {
		o.Auth = nobody{}
	}
	o.PublicURL = strings.TrimSuffix(o.PublicURL, "/")
	c := &Console{Options: o, public: public, secure: public.Scheme == "https", guests: rate.NewLimiter(20, 60)}
	if c.pages, err = parsePages(); err != nil {
		return nil, err
	}
	c.board = &board{js: o.JS, now: o.Now, logger: o.Logger}
	return c, nil
}

// Handler returns the console's pages.
func (c *Console) Handler() http.Handler {
	mux := http.NewServeMux()
	private := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, c.private(h)) }
	private("GET /{$}", c.list)
	private("GET /connect", c.connectForm)
	private("POST /connect", c.connect)
	private("GET /connections/{name}", c.show)
	private("GET /connections/{name}/reauthorize", c.reauthorizeForm)
	private("POST /connections/{name}/reauthorize", c.reauthorize)
	private("POST /connections/{name}/share", c.shareExisting)
	private("POST /connections/{name}/test", c.test)
	private("GET /connections/{name}/disconnect", c.disconnectForm)
	// The address that a button leaves in the browser's bar.
	for _, what := range []string{"test", "share"} {
		private("GET /connections/{name}/"+what, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/connections/"+url.PathEscape(r.PathValue("name")), http.StatusSeeOther)
		})
	}
	private("POST /connections/{name}/disconnect", c.disconnect)
	private("GET /links", c.links)
	private("POST /links/{id}/withdraw", c.withdraw)
	private("GET /orgs", c.orgs)
	c.deadRoutes(private)
	// What follows needs no sign-in: a state or a one-time link is the right to it.
	mux.HandleFunc("GET "+CallbackPath, c.callback)
	mux.HandleFunc("GET /oauth/decide", c.decideForm)
	mux.HandleFunc("POST /oauth/decide", c.decide)
	mux.HandleFunc("GET /oauth/done", c.doneShared)
	mux.HandleFunc("GET /link/{word}", c.link)
	mux.HandleFunc("POST /link/{word}", c.beginLink)
	mux.HandleFunc("GET "+staticPath+"{file}", c.static)
	c.Auth.routes(mux, c)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, http.StatusNotFound, &consent.Fault{
			Code: consent.Invalid, Title: "There is no such page", Text: "The address is not one of the console's.", Todo: "Go to the list of connections.",
		}, c.home("Open the console"))
	})
	return c.guard(mux)
}
