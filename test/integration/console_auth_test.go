package integration

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/secret"
)

// provider is an OpenID provider that signs in whom the test says.
type provider struct {
	*httptest.Server
	key      *rsa.PrivateKey
	nonce    string
	email    string
	verified bool
	audience string
	verifier string // as the token endpoint got it
}

func newProvider(t *testing.T) *provider {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{key: key, audience: "console", verified: true}
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, doc{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256"},
		})
	})
	encode := base64.RawURLEncoding.EncodeToString
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, doc{"keys": []doc{{
			"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "k", "n": encode(key.N.Bytes()), "e": encode(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		p.verifier = r.PostForm.Get("code_verifier")
		header, _ := json.Marshal(doc{"alg": "RS256", "kid": "k"})
		claims, _ := json.Marshal(doc{
			"iss": p.URL, "aud": p.audience, "sub": "1", "nonce": p.nonce, "email": p.email, "email_verified": p.verified,
			"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
		})
		signed := encode(header) + "." + encode(claims)
		sum := sha256.Sum256([]byte(signed))
		signature, _ := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		reply(w, doc{"access_token": "a", "token_type": "Bearer", "id_token": signed + "." + encode(signature)})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// signsIn has the console ask the provider who somebody is, and let these in.
func (p *provider) signsIn(t *testing.T, allowed ...string) func(*app.Config) {
	return func(config *app.Config) {
		config.HTTPAddr = free(t)
		config.ConsoleAuth, config.PublicURL = "oidc", "http://"+config.HTTPAddr
		config.OIDCIssuer, config.OIDCClientID, config.OIDCClientSecret = p.URL, "console", secret.New("oidc-secret")
		config.OIDCAllowed = allowed
	}
}

func TestConsoleOIDC(t *testing.T) {
	t.Parallel()
	idp := newProvider(t)
	c := newConsole(t, idp.signsIn(t, "@example.com", "guest@else.example"))
	// signIn goes to the page and through the provider, as that address.
	signIn := func(p *person, page, email string) answer {
		to := p.get(page).want(t, 303).location
		u, err := url.Parse(to)
		if err != nil || !strings.HasPrefix(to, idp.URL+"/auth?") {
			t.Fatalf("sent to %q", to)
		}
		q := u.Query()
		if q.Get("code_challenge_method") != "S256" || q.Get("state") == "" {
			t.Errorf("asked with %v", q)
		}
		idp.nonce, idp.email = q.Get("nonce"), email
		return p.get("/auth/callback?code=c&state=" + url.QueryEscape(q.Get("state")))
	}
	p := c.person()
	got := signIn(p, "/connect?nickname=x", "Ada@example.com").want(t, 303)
	if got.location != "/connect?nickname=x" || idp.verifier == "" {
		t.Fatalf("led to %q", got.location)
	}
	p.get("/connect").want(t, 200, "Connect a Zoho account", "Ada@example.com")
	got = p.connect("Acme", ada)
	p.follow(got).want(t, 200, "Acme is connected")
	if record := c.record("acme"); record.UpdatedBy != "Ada@example.com" {
		t.Errorf("by %q", record.UpdatedBy)
	}
	signIn(c.person(), "/", "guest@else.example").want(t, 303)

	signIn(c.person(), "/", "evil@else.example").want(t, 403, "not signed in")
	signIn(c.person(), "/", "evil@notexample.com").want(t, 403)
	signIn(c.person(), "/", "@example.com").want(t, 403)
	idp.verified = false
	signIn(c.person(), "/", "ada@example.com").want(t, 403)
	idp.verified, idp.audience = true, "another"
	signIn(c.person(), "/", "ada@example.com").want(t, 403)
	idp.audience = "console"
	other := c.person()
	u, err := url.Parse(other.get("/").want(t, 303).location)
	if err != nil {
		t.Fatal(err)
	}
	idp.nonce = "of another sign-in" // an id token that somebody else was given
	other.get("/auth/callback?code=c&state="+url.QueryEscape(u.Query().Get("state"))).want(t, 403)
	stranger := c.person()
	stranger.get("/auth/callback?code=c&state=x").want(t, 403)
	stranger.get("/").want(t, 303)
	stranger.get("/auth/callback?code=c&state=x").want(t, 403)
	if got := stranger.raw("/connect", url.Values{"nickname": {"x"}}, nil); got.status != 401 {
		t.Errorf("a post without a session: %d", got.status)
	}
	p.submit("/connect", "/auth/signout").want(t, 200, "signed out")
	p.get("/").want(t, 303)
}

// Tabs whose sessions end at the same time sign in side by side.
func TestConsoleOIDCOfTwoTabs(t *testing.T) {
	t.Parallel()
	idp := newProvider(t)
	c := newConsole(t, idp.signsIn(t, "@example.com"))
	p := c.person()
	pages := []string{"/orgs", "/dead"}
	var begun []url.Values
	for _, page := range pages {
		u, err := url.Parse(p.get(page).want(t, 303).location)
		if err != nil {
			t.Fatal(err)
		}
		begun = append(begun, u.Query())
	}
	idp.email = "ada@example.com"
	for i, q := range begun {
		idp.nonce = q.Get("nonce")
		back := "/auth/callback?code=c&state=" + url.QueryEscape(q.Get("state"))
		if got := p.get(back).want(t, 303); got.location != pages[i] {
			t.Errorf("tab %d is led to %q", i, got.location)
		}
		p.get(back).want(t, 403) // once
	}
}

func TestConsoleProxyHeader(t *testing.T) {
	t.Parallel()
	configured := func(network string) func(*app.Config) {
		return func(config *app.Config) {
			config.HTTPAddr = free(t)
			config.ConsoleAuth, config.PublicURL = "proxy-header", "http://"+config.HTTPAddr
			config.ConsoleProxyHeader, config.ConsoleProxyNetworks = "X-Forwarded-Email", []string{network}
		}
	}
	c := newConsole(t, configured("127.0.0.0/8"))
	ask := func(base string, values ...string) answer {
		p := c.person()
		p.base = base
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/", nil)
		req.Header["X-Forwarded-Email"] = values
		return p.do(req)
	}
	ask(c.base, "ada@example.com").want(t, 200, "ada@example.com", "No Zoho account")
	for _, values := range [][]string{nil, {""}, {"ada@example.com", "evil@example.com"}} {
		ask(c.base, values...).want(t, 403, "front door")
	}
	elsewhere := c.rig.worker(configured("10.0.0.0/8"))
	ask("http://"+elsewhere.HTTPAddr, "ada@example.com").want(t, 403, "front door")
}

func TestConsoleConfiguration(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		change func(*app.Config)
		says   string
	}{
		{func(c *app.Config) { c.ConsoleAuth, c.HTTPAddr = "none", ":8080" }, "loopback"},
		{func(c *app.Config) { c.ConsoleAuth = "everybody" }, "--console-auth"},
		{func(c *app.Config) {
			c.ConsoleAuth, c.PublicURL, c.ConsoleUsers = "basic", "https://x.example", secret.New("ops:plain-password")
		}, "not a bcrypt hash"},
		{func(c *app.Config) { c.ConsoleAuth, c.PublicURL = "oidc", "http://x.example" }, "must be https"},
		{func(c *app.Config) { c.ConsoleAuth = "proxy-header" }, "--public-url"},
		{func(c *app.Config) { c.ConsoleAuth, c.PublicURL = "none", "http://127.0.0.1:1/path" }, "no path"},
		{func(c *app.Config) { c.WebhookURL = "http://x.example" }, "--webhook-url"},
		{func(c *app.Config) { c.ZohoClientSecrets = secret.New("eu:s,plain-secret") }, "--zoho-client-secrets"},
	} {
		config := app.Defaults()
		config.ZohoClientID, config.ZohoClientSecret, config.EncryptionKeys = "1000.X", secret.New("s"), secret.Generate()
		config.HTTPAddr = "127.0.0.1:0"
		test.change(&config)
		err := config.Validate()
		if err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("want %q, got %v", test.says, err)
		}
		if err != nil && slices.ContainsFunc([]string{"plain-password", "plain-secret"}, func(s string) bool { return strings.Contains(err.Error(), s) }) {
			t.Errorf("the fault shows a secret: %v", err)
		}
	}
}
