package zohotest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"iter"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Consent is what a user agreed to on the consent page.
type Consent struct {
	RedirectURI         string // checked at the exchange if not empty
	Scopes              []string
	CodeChallenge       string // PKCE; empty: none
	CodeChallengeMethod string // "S256" or "plain"; empty: plain
	Online              bool   // access_type=online: no refresh token
	Environment         string // chosen on the page; the simulator has one of each, so it is only told
}

// code is a grant code: single use, codeLife long.
type code struct {
	Consent
	user *User
	born time.Time
	used bool
}

// AuthorizationCode gives a code as the consent page does, without its limit.
func (s *Server) AuthorizationCode(userID string, c Consent) string {
	u := s.user(userID)
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	return s.auth.newCode(u, c, s.now())
}

func (a *authority) newCode(u *User, c Consent, now time.Time) string {
	for value, old := range a.codes { // few, and they live for minutes
		if now.Sub(old.born) > mintWindow {
			delete(a.codes, value)
		}
	}
	value := newToken()
	a.codes[value] = &code{Consent: c, user: u, born: now}
	return value
}

// accounts answers what is under /oauth/.
func (s *Server) accounts(x *exchange) *result {
	switch x.call.Path {
	case "/oauth/v2/token":
		if x.call.Method != http.MethodPost {
			return &result{code: "server error", Answer: Answer{
				Status: http.StatusInternalServerError, Body: []byte("<html><body><h1>server error</h1></body></html>"),
				Header: http.Header{"Content-Type": {"text/html;charset=UTF-8"}},
			}}
		}
		return s.token(x)
	case "/oauth/v2/token/revoke":
		return s.revoke(x)
	case "/oauth/v2/auth":
		return s.consent(x)
	case "/oauth/serverinfo":
		locations := params{}
		for name, dc := range dataCentres {
			locations[name] = dc.accounts
		}
		return reply(http.StatusOK, "", params{"result": "success", "locations": locations})
	}
	return &result{Answer: Answer{Status: http.StatusNotFound}}
}

// token is the token endpoint: refresh and code exchange.
func (s *Server) token(x *exchange) *result {
	id, secret := x.form["client_id"], x.form["client_secret"]
	switch {
	case id == "" || s.opt.ClientID != "" && id != s.opt.ClientID:
		return oauthError("invalid_client")
	case secret == "" || s.opt.ClientSecret != "" && secret != s.opt.ClientSecret:
		return oauthError("invalid_client_secret")
	}
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	now := s.now()
	switch x.call.GrantType {
	case "refresh_token":
		g := x.grant
		if g == nil || g.dead {
			return oauthError("invalid_code")
		}
		if g.throttled(now, s.auth.maxMints) {
			return accessDenied(http.StatusBadRequest)
		}
		return s.grantToken(x, g, now, false)
	case "authorization_code":
		c := s.auth.codes[x.form["code"]]
		if c == nil || c.used || now.Sub(c.born) > codeLife {
			return oauthError("invalid_code")
		}
		if c.RedirectURI != "" && c.RedirectURI != x.form["redirect_uri"] {
			return oauthError("invalid_redirect_uri")
		}
		c.used = true
		if !c.verify(x.form["code_verifier"]) {
			return oauthError("invalid_code")
		}
		g := &grant{id: "online", user: c.user, scopes: c.Scopes}
		if !c.Online {
			g = s.auth.newGrant(c.user, newToken(), c.Scopes)
		}
		x.call.Grant, x.call.UserID, x.call.OrgID = g.id, g.user.ID, g.user.OrgID
		return s.grantToken(x, g, now, !c.Online)
	}
	return oauthError("general_error")
}

// grantToken is the success of the token endpoint.
func (s *Server) grantToken(x *exchange, g *grant, now time.Time, withRefresh bool) *result {
	t := s.auth.mint(g, now)
	if g.mints = append(g.mints, now); len(g.mints) > maxLive && s.auth.maxMints < 0 {
		g.mints = nil // nobody counts
	}
	x.call.Token = TokenRef{Serial: t.serial, Generation: t.generation, Grant: g.id, State: stateLive}
	body := struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token,omitempty"`
		Scope        string `json:"scope,omitempty"`
		APIDomain    string `json:"api_domain"`
		TokenType    string `json:"token_type"`
		ExpiresIn    int    `json:"expires_in"`
	}{
		AccessToken: t.token, Scope: strings.Join(g.scopes, " "),
		APIDomain: s.hosts(g.user).api, TokenType: "Bearer", ExpiresIn: int(s.auth.life.Seconds()),
	}
	if withRefresh {
		body.RefreshToken = g.refresh
	}
	return reply(http.StatusOK, minted, body)
}

// verify checks PKCE.
func (c *code) verify(verifier string) bool {
	switch {
	case c.CodeChallenge == "":
		return true
	case c.CodeChallengeMethod == "S256":
		sum := sha256.Sum256([]byte(verifier))
		verifier = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	return verifier == c.CodeChallenge
}

// revoke ends a refresh token with its access tokens, or one access token.
func (s *Server) revoke(x *exchange) *result {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	token := x.form["token"]
	if g := s.auth.grants[token]; g != nil && !g.dead {
		s.auth.revoke(g)
	} else if t := s.auth.access[token]; t != nil && t.state == stateLive {
		t.state = stateRevoked
		t.grant.live = slices.DeleteFunc(t.grant.live, func(o *access) bool { return o == t })
		s.auth.bury(t)
	} else {
		return reply(http.StatusBadRequest, "invalid_token", params{"error": "invalid_token"})
	}
	return reply(http.StatusOK, "success", params{"status": "success"})
}

// secretParams are masked in the ledger.
var secretParams = []string{"client_secret", "refresh_token", "code", "code_verifier", "token"}

// mask keeps secrets of the accounts server out of the ledger.
func (x *exchange) mask() {
	if len(x.call.Header["Authorization"]) > 0 {
		x.call.Header.Set("Authorization", "***")
	}
	if q, err := url.ParseQuery(x.call.RawQuery); err == nil {
		x.call.RawQuery = masked(q)
	}
}

func masked(form url.Values) string {
	for _, name := range secretParams {
		if form.Has(name) {
			form.Set(name, "***")
		}
	}
	return form.Encode()
}

// identifyGrant reads the parameters and finds out whose refresh token is meant, so
// that faults can pick its calls. A JSON body has no parameters: Zoho doesn't read it.
func (x *exchange) identifyGrant() {
	form, _ := url.ParseQuery(x.r.URL.RawQuery)
	body := bodyForm(x.r.Header.Get("Content-Type"), x.body)
	x.form = map[string]string{}
	for _, values := range []url.Values{form, body} {
		for name := range values {
			x.form[name] = values.Get(name)
		}
	}
	x.call.Body = []byte(masked(body))
	x.call.GrantType = x.form["grant_type"]
	s := x.s
	s.auth.mu.RLock()
	defer s.auth.mu.RUnlock()
	if g := s.auth.grants[x.form["refresh_token"]]; g != nil {
		x.grant, x.user = g, g.user
		x.call.Grant, x.call.UserID, x.call.OrgID = g.id, g.user.ID, g.user.OrgID
	}
}

func bodyForm(contentType string, body []byte) url.Values {
	form := url.Values{}
	kind, p, _ := mime.ParseMediaType(contentType)
	switch kind {
	case "application/x-www-form-urlencoded":
		if f, err := url.ParseQuery(string(body)); err == nil {
			form = f
		}
	case "multipart/form-data": // the Node SDK
		for name, value := range parts(body, p["boundary"]) {
			form.Set(name, string(value))
		}
	}
	return form
}

// parts yields the parts of a multipart body by name, up to the first broken one.
func parts(body []byte, boundary string) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		r := multipart.NewReader(bytes.NewReader(body), boundary)
		for {
			p, err := r.NextPart()
			if err != nil {
				return
			}
			value, err := io.ReadAll(p)
			if err != nil || !yield(p.FormName(), value) {
				return
			}
		}
	}
}

// hosts are the servers of a data centre.
type hosts struct{ accounts, api string }

// dataCentres are those of zoho-facts 1.8 by location.
var dataCentres = map[string]hosts{
	"us": {"https://accounts.zoho.com", "https://www.zohoapis.com"},
	"eu": {"https://accounts.zoho.eu", "https://www.zohoapis.eu"},
	"in": {"https://accounts.zoho.in", "https://www.zohoapis.in"},
	"au": {"https://accounts.zoho.com.au", "https://www.zohoapis.com.au"},
	"jp": {"https://accounts.zoho.jp", "https://www.zohoapis.jp"},
	"cn": {"https://accounts.zoho.com.cn", "https://www.zohoapis.com.cn"},
	"ca": {"https://accounts.zohocloud.ca", "https://www.zohoapis.ca"},
	"sa": {"https://accounts.zoho.sa", "https://www.zohoapis.sa"},
	"uk": {"https://accounts.zoho.uk", "https://www.zohoapis.uk"},
	"ae": {"https://accounts.zoho.ae", "https://www.zohoapis.ae"},
}

// hosts are what the server calls itself towards the client of a user.
func (s *Server) hosts(u *User) hosts {
	h, ok := dataCentres[u.Location]
	if !ok {
		h = dataCentres["us"]
	}
	if s.opt.AccountsURL != "" {
		h.accounts = s.opt.AccountsURL
	}
	if s.opt.APIURL != "" {
		h.api = s.opt.APIURL
	}
	return h
}

func itoa(n int) string { return strconv.Itoa(n) }
