package console

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"zoho-worker/internal/consent"
	"zoho-worker/internal/secret"
)

// Auth says who may see the console.
type Auth interface {
	// person names who is signed in; where nobody is, it answers the request.
	person(w http.ResponseWriter, r *http.Request, c *Console) (string, bool)
	// routes adds pages of its own.
	routes(mux *http.ServeMux, c *Console)
	// signOut tells whether there is a way to sign out.
	signOut() bool
}

// nobody asks nobody: for development on loopback.
type nobody struct{}

func (nobody) person(http.ResponseWriter, *http.Request, *Console) (string, bool) {
	return "console (no sign-in)", true
}
func (nobody) routes(*http.ServeMux, *Console) {}
func (nobody) signOut() bool                   { return false }

// Basic is HTTP basic authentication. Make one with NewBasic.
type Basic struct {
	users   map[string][]byte // name to bcrypt hash
	slowest []byte            // the hash of the highest cost among them

	mu       sync.Mutex
	known    map[[32]byte]time.Time // credentials that were right, and until when
	failures map[string]*rate.Limiter
	hashing  chan struct{}
}

const (
	// A name is guessed at most failBurst times in a row and once per failEvery
	// after that, from one address.
	failBurst = 10
	failEvery = 10 * time.Second
	knownFor  = 5 * time.Minute
)

// NewBasic reads "user:bcrypt-hash,user2:…", as htpasswd -nB -C 12 prints them.
func NewBasic(users string) (*Basic, error) {
	b := &Basic{
		users: map[string][]byte{}, known: map[[32]byte]time.Time{}, failures: map[string]*rate.Limiter{},
		hashing: make(chan struct{}, 2),
	}
	var faults []error
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("--console-users (CONSOLE_USERS): "+format, args...))
	}
	for i, item := range strings.FieldsFunc(users, func(r rune) bool { return r == ',' || r == '\n' || r == ' ' }) {
		name, hash, ok := strings.Cut(strings.TrimSpace(item), ":")
		cost, err := bcrypt.Cost([]byte(hash))
		switch {
		case !ok || name == "":
			fault("user %d: want user:bcrypt-hash, as `htpasswd -nB -C 12 user` prints", i+1)
		case err != nil:
			fault("user %d: what follows the colon is not a bcrypt hash", i+1)
		case cost < 10:
			fault("user %d: bcrypt cost %d is too low, want 10 or more: htpasswd -nB -C 12 NAME", i+1, cost)
		default:
			b.users[name] = []byte(hash)
			if before, err := bcrypt.Cost(b.slowest); err != nil || before < cost {
				b.slowest = []byte(hash)
			}
		}
	}
	if len(b.users) == 0 && len(faults) == 0 {
		fault("missing: want user:bcrypt-hash, comma separated, as `htpasswd -nB -C 12 user` prints")
	}
	return b, errors.Join(faults...)
}

// hash is what a password is compared with. For an unknown name it is somebody's, so
// that the refusal takes as long as that of a wrong password and doesn't tell names.
func (b *Basic) hash(name string) (hash []byte, there bool) {
	if hash, there = b.users[name]; there {
		return hash, true
	}
	return b.slowest, false
}

func (b *Basic) person(w http.ResponseWriter, r *http.Request, c *Console) (string, bool) {
	name, password, ok := r.BasicAuth()
	if !ok {
		b.ask(w, r, c)
		return "", false
	}
	digest := sha256.Sum256([]byte(strconv.Itoa(len(name)) + ":" + name + password))
	now := c.Now()
	b.mu.Lock()
	if until, ok := b.known[digest]; ok && now.Before(until) {
		b.mu.Unlock()
		return name, true
	}
	delete(b.known, digest)
	from := guesser(clientIP(r))
	limiter := b.failures[from]
	if limiter == nil {
		if len(b.failures) >= 10_000 {
			clear(b.failures)
		}
		limiter = rate.NewLimiter(rate.Every(failEvery), failBurst)
		b.failures[from] = limiter
	}
	allowed := limiter.AllowN(now, 1) // given back below where it was right
	b.mu.Unlock()
	if !allowed {
		w.Header().Set("Retry-After", strconv.Itoa(int(failEvery.Seconds())))
		c.fail(w, r, http.StatusTooManyRequests, &consent.Fault{
			Code: consent.Invalid, Title: "Too many wrong passwords", Text: "Signing in from your address is closed for a moment.",
			Todo: "Wait a minute, then try again.",
		}, again(r, "Try again"))
		return "", false
	}
	select {
	case b.hashing <- struct{}{}:
		defer func() { <-b.hashing }()
	case <-r.Context().Done():
		return "", false
	}
	hash, there := b.hash(name)
	if len(password) > 72 || bcrypt.CompareHashAndPassword(hash, []byte(password)) != nil || !there {
		c.Logger.Warn("console sign-in refused", "from", clientIP(r))
		b.ask(w, r, c)
		return "", false
	}
	b.mu.Lock()
	if len(b.known) >= 1000 {
		clear(b.known)
	}
	b.known[digest] = now.Add(knownFor)
	delete(b.failures, from)
	b.mu.Unlock()
	return name, true
}

// guesser is whom wrong passwords are counted for: an address; of IPv6 the 64 bits that
// whoever has one address has the rest of.
func guesser(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return ip
	}
	if addr = addr.Unmap().WithZone(""); addr.Is6() {
		return netip.PrefixFrom(addr, 64).Masked().String()
	}
	return addr.String()
}

func (b *Basic) ask(w http.ResponseWriter, r *http.Request, c *Console) {
	w.Header().Set("WWW-Authenticate", `Basic realm="zoho-worker", charset="UTF-8"`)
	c.fail(w, r, http.StatusUnauthorized, &consent.Fault{
		Code: consent.Invalid, Title: "Please sign in", Text: "The console is for people who look after this worker.",
		Todo: "Load the page again and enter your name and password.",
	}, again(r, "Sign in"))
}

func (b *Basic) routes(*http.ServeMux, *Console) {}
func (b *Basic) signOut() bool                   { return false }

// ProxyHeader trusts a header that a proxy in front sets. Make one with NewProxyHeader.
type ProxyHeader struct {
	header string
	from   []netip.Prefix
}

// NewProxyHeader trusts the header on connections from the networks only.
func NewProxyHeader(header string, networks []string) (*ProxyHeader, error) {
	p := &ProxyHeader{header: http.CanonicalHeaderKey(header)}
	var faults []error
	if header == "" {
		faults = append(faults, errors.New("--console-proxy-header (CONSOLE_PROXY_HEADER): missing: the header that says who is signed in, like X-Forwarded-Email"))
	}
	for _, text := range networks {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			faults = append(faults, fmt.Errorf("--console-proxy-networks (CONSOLE_PROXY_NETWORKS): %q is no network like 10.0.0.0/8", text))
			continue
		}
		p.from = append(p.from, prefix.Masked())
	}
	if len(networks) == 0 {
		faults = append(faults, errors.New("--console-proxy-networks (CONSOLE_PROXY_NETWORKS): missing: where the proxy connects from, like 10.0.0.0/8"))
	}
	return p, errors.Join(faults...)
}

func (p *ProxyHeader) person(w http.ResponseWriter, r *http.Request, c *Console) (string, bool) {
	addr, err := netip.ParseAddr(clientIP(r))
	addr = addr.Unmap().WithZone("")
	trusted := err == nil && slices.ContainsFunc(p.from, func(network netip.Prefix) bool { return network.Contains(addr) })
	values := r.Header[p.header]
	if !trusted || len(values) != 1 || strings.TrimSpace(values[0]) == "" {
		c.fail(w, r, http.StatusForbidden, &consent.Fault{
			Code: consent.Invalid, Title: "Please come by the front door", Text: "The console is reached through the proxy that knows who you are.",
			Todo: "Open " + c.PublicURL + ".",
		}, c.home("Open the console"))
		return "", false
	}
	return clip(strings.TrimSpace(values[0])), true
}

func (p *ProxyHeader) routes(*http.ServeMux, *Console) {}
func (p *ProxyHeader) signOut() bool                   { return false }

// clip makes a name fit for records and logs.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '�' {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > 150 {
		s = string(r[:150])
	}
	return s
}

// OIDC signs people in at an OpenID provider. Make one with NewOIDC.
type OIDC struct {
	OIDCConfig
	mu       sync.Mutex
	provider *oidc.Provider
	failed   error     // why there is no provider
	again    time.Time // when it may be asked again
}

// OIDCConfig is what the provider and its guests are.
type OIDCConfig struct {
	Issuer       string
	ClientID     string
	ClientSecret secret.Text
	// Allowed are e-mail addresses, and domains with an @ in front: "@example.com".
	Allowed []string
}

const (
	sessionLife = 8 * time.Hour
	// providerPause is for how long a provider that did not answer is left alone.
	providerPause = 5 * time.Second
)

// NewOIDC checks the configuration. The provider is asked at the first sign-in,
// so that a worker starts without it.
func NewOIDC(config OIDCConfig) (*OIDC, error) {
	var faults []error
	issuer, err := url.Parse(config.Issuer)
	if err != nil || issuer.Host == "" || issuer.Scheme != "https" && (issuer.Scheme != "http" || !Loopback(net.JoinHostPort(issuer.Hostname(), "0"))) {
		faults = append(faults, errors.New("--oidc-issuer (OIDC_ISSUER): must be an https address"))
	}
	if config.ClientID == "" {
		faults = append(faults, errors.New("--oidc-client-id (OIDC_CLIENT_ID): missing: the provider gives it to who registers the console"))
	}
	if config.ClientSecret.IsZero() {
		faults = append(faults, errors.New("--oidc-client-secret (OIDC_CLIENT_SECRET): missing: it stands beside the client id"))
	}
	if len(config.Allowed) == 0 {
		faults = append(faults, errors.New("--oidc-allowed (OIDC_ALLOWED): missing: e-mail addresses, or domains like @example.com"))
	}
	config.Allowed = slices.Clone(config.Allowed)
	for i, item := range config.Allowed {
		config.Allowed[i] = strings.TrimSpace(item)
		if !strings.Contains(item, "@") {
			faults = append(faults, fmt.Errorf("--oidc-allowed (OIDC_ALLOWED): %q: an e-mail address, or a domain like @example.com", item))
		}
	}
	return &OIDC{OIDCConfig: config}, errors.Join(faults...)
}

func (o *OIDC) config(ctx context.Context, c *Console) (*oidc.Provider, *oauth2.Config, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.provider == nil {
		if c.Now().Before(o.again) {
			return nil, nil, o.failed
		}
		// The provider fetches its keys with this context later on.
		client := &http.Client{Timeout: 10 * time.Second}
		provider, err := oidc.NewProvider(oidc.ClientContext(context.WithoutCancel(ctx), client), o.Issuer)
		if err != nil {
			// Those who waited for this answer don't wait for one more each.
			o.failed, o.again = err, c.Now().Add(providerPause)
			return nil, nil, err
		}
		o.provider = provider
	}
	return o.provider, &oauth2.Config{
		ClientID: o.ClientID, ClientSecret: o.ClientSecret.Reveal(), Endpoint: o.provider.Endpoint(),
		RedirectURL: c.PublicURL + "/auth/callback", Scopes: []string{oidc.ScopeOpenID, "email"},
	}, nil
}

type session struct {
	Email string `json:"email"`
}

// signIn is a sign-in under way, in a cookie of its own: when a session ends, each tab begins one.
type signIn struct {
	State, Nonce, Verifier, Next string
}

func (o *OIDC) person(w http.ResponseWriter, r *http.Request, c *Console) (string, bool) {
	var s session
	if c.cookie(r, "session", &s) && o.allowed(s.Email) {
		return s.Email, true
	}
	if r.Method != http.MethodGet {
		c.fail(w, r, http.StatusUnauthorized, &consent.Fault{
			Code: consent.Invalid, Title: "Your session has ended", Text: "Nothing was changed.", Todo: "Sign in again and repeat what you did.",
		}, c.from(r, "Sign in"))
		return "", false
	}
	if r.URL.Query().Has("rows") {
		w.WriteHeader(http.StatusUnauthorized) // the page's own refresh
		return "", false
	}
	_, config, err := o.config(r.Context(), c)
	if err != nil {
		o.unavailable(w, r, c, err)
		return "", false
	}
	next := signIn{State: oauth2.GenerateVerifier(), Nonce: oauth2.GenerateVerifier(), Verifier: oauth2.GenerateVerifier(), Next: r.URL.RequestURI()}
	c.setCookie(w, stateCookie("signin", next.State), next, 10*time.Minute)
	http.Redirect(w, r, config.AuthCodeURL(next.State, oidc.Nonce(next.Nonce), oauth2.S256ChallengeOption(next.Verifier)), http.StatusSeeOther)
	return "", false
}

func (o *OIDC) allowed(email string) bool {
	email = strings.ToLower(email)
	at := strings.LastIndexByte(email, '@')
	if at < 1 {
		return false
	}
	return slices.ContainsFunc(o.Allowed, func(item string) bool {
		item = strings.ToLower(item)
		return item == email || item[0] == '@' && item == email[at:]
	})
}

func (o *OIDC) unavailable(w http.ResponseWriter, r *http.Request, c *Console, err error) {
	c.Logger.Error("OpenID provider does not answer", "err", err)
	c.fail(w, r, http.StatusBadGateway, &consent.Fault{
		Code: consent.Unavailable, Title: "Sign-in is not possible now", Text: "The OpenID provider does not answer as it should.", Todo: "Try again in a minute.",
	}, c.home("Try again"))
}

func (o *OIDC) refused(w http.ResponseWriter, r *http.Request, c *Console, why string) {
	c.Logger.Warn("console sign-in refused", "from", clientIP(r), "why", why)
	c.fail(w, r, http.StatusForbidden, &consent.Fault{
		Code: consent.Invalid, Title: "You are not signed in", Text: "The sign-in was not completed, or this account may not open the console.",
		Todo: "Open the console again, and sign in with an account that is allowed.",
	}, c.home("Sign in"))
}

func (o *OIDC) routes(mux *http.ServeMux, c *Console) {
	mux.HandleFunc("GET /auth/callback", func(w http.ResponseWriter, r *http.Request) {
		var begun signIn
		query := r.URL.Query()
		name := stateCookie("signin", query.Get("state"))
		if !c.cookie(r, name, &begun) || subtle.ConstantTimeCompare([]byte(begun.State), []byte(query.Get("state"))) != 1 {
			o.refused(w, r, c, "state")
			return
		}
		c.dropCookie(w, name)
		provider, config, err := o.config(r.Context(), c)
		if err != nil {
			o.unavailable(w, r, c, err)
			return
		}
		ctx := oidc.ClientContext(r.Context(), &http.Client{Timeout: 10 * time.Second})
		tokens, err := config.Exchange(ctx, query.Get("code"), oauth2.VerifierOption(begun.Verifier))
		if err != nil {
			o.refused(w, r, c, "code")
			return
		}
		raw, _ := tokens.Extra("id_token").(string)
		id, err := provider.VerifierContext(ctx, &oidc.Config{ClientID: o.ClientID}).Verify(ctx, raw)
		if err != nil || subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(begun.Nonce)) != 1 {
			o.refused(w, r, c, "id token")
			return
		}
		var claims struct {
			Email    string `json:"email"`
			Verified *bool  `json:"email_verified"`
		}
		if id.Claims(&claims) != nil || claims.Verified == nil || !*claims.Verified || !o.allowed(claims.Email) {
			o.refused(w, r, c, "not allowed")
			return
		}
		c.setCookie(w, "session", session{Email: clip(claims.Email)}, sessionLife)
		c.Logger.Info("console sign-in", "person", claims.Email)
		http.Redirect(w, r, local(begun.Next), http.StatusSeeOther)
	})
	mux.Handle("POST /auth/signout", c.private(func(w http.ResponseWriter, r *http.Request) {
		c.dropCookie(w, "session")
		out := r.WithContext(context.WithValue(r.Context(), personKey{}, "")) // nobody any more
		c.fail(w, out, http.StatusOK, &consent.Fault{
			Title: "You are signed out", Text: "The console has forgotten this browser.", Todo: "Close the tab, or sign in again.",
		}, c.home("Sign in"))
	}))
}

func (o *OIDC) signOut() bool { return true }

// Loopback reports whether a listening address can be reached from this machine only.
func Loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
