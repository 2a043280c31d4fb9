package zohotest

import (
	"cmp"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// The limits of the accounts server, zoho-facts 1.6; where the sources conflict, the stricter one.
const (
	tokenLife    = time.Hour
	maxMints     = 10 // per refresh token and mintWindow
	mintWindow   = 10 * time.Minute
	maxLive      = 10 // access tokens per refresh token
	maxGrants    = 20 // refresh tokens per user and client
	maxDead      = 10_000
	codeLife     = time.Minute
	maxCodes     = 10 // grant codes per user and mintWindow, on the consent page
	minted       = "minted"
	stateLive    = "live"
	stateExpired = "expired"
	stateEvicted = "evicted"
	stateRevoked = "revoked"
)

// authority issues tokens. Its lock is never held together with another one.
type authority struct {
	mu      sync.RWMutex
	grants  map[string]*grant // by refresh token, dead ones included
	byUser  map[string][]*grant
	access  map[string]*access
	dead    []*access // the oldest are forgotten beyond maxDead
	codes   map[string]*code
	serial  int
	nth     int
	autoFor string // the user for whom the consent page approves at once

	life     time.Duration // of an access token
	maxMints int           // negative: any number
}

// grant is what a user's consent gave: a refresh token and its access tokens.
type grant struct {
	id         string
	refresh    string // "" for access_type=online
	user       *User
	scopes     []string
	mints      []time.Time // within the last mintWindow
	blocked    time.Time   // no minting before
	live       []*access   // oldest first
	generation int
	dead       bool
}

// access is an access token. Its fields are guarded by the authority, but token,
// grant, serial, generation and expires never change.
type access struct {
	token      string
	grant      *grant
	serial     int
	generation int
	expires    time.Time
	state      string
}

func (a *authority) init(o Options) {
	a.life, a.maxMints = cmp.Or(o.TokenLife, tokenLife), cmp.Or(o.MaxMints, maxMints)
	a.grants, a.byUser = map[string]*grant{}, map[string][]*grant{}
	a.access, a.codes = map[string]*access{}, map[string]*code{}
}

func newToken() string { return "1000." + randomHex(16) + "." + randomHex(16) }

// GrantRefreshToken gives a new refresh token, as if the user had just consented.
// Without scopes it may do everything. The 21st of a user silently deletes the oldest.
func (s *Server) GrantRefreshToken(userID string, scopes ...string) string {
	u := s.user(userID)
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	return s.auth.newGrant(u, newToken(), scopes).refresh
}

// GrantThisRefreshToken is GrantRefreshToken with a token of the caller's choice,
// for a sandbox whose connection outlives the simulator.
func (s *Server) GrantThisRefreshToken(userID, token string, scopes ...string) {
	u := s.user(userID)
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.newGrant(u, token, scopes)
}

func (a *authority) newGrant(u *User, token string, scopes []string) *grant {
	a.nth++
	g := &grant{id: "grant-" + itoa(a.nth), refresh: token, user: u, scopes: scopes}
	a.grants[g.refresh] = g
	mine := append(slices.Clone(a.byUser[u.ID]), g)
	if len(mine) > maxGrants {
		a.kill(mine[0], stateEvicted)
		mine = slices.Delete(mine, 0, 1)
	}
	a.byUser[u.ID] = mine
	return g
}

// kill ends a grant and all its access tokens.
func (a *authority) kill(g *grant, state string) {
	g.dead = true
	a.end(g, state)
}

// end ends the live access tokens of a grant.
func (a *authority) end(g *grant, state string) {
	for _, t := range g.live {
		t.state = state
		a.bury(t)
	}
	g.live = nil
}

// bury remembers a dead token for a while, so that the ledger can tell whose it was.
func (a *authority) bury(t *access) {
	if a.dead = append(a.dead, t); len(a.dead) > maxDead {
		delete(a.access, a.dead[0].token)
		a.dead = a.dead[1:]
	}
}

// RevokeRefreshToken ends a grant and its access tokens, as when the user removes the app.
func (s *Server) RevokeRefreshToken(token string) {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	if g := s.auth.grants[token]; g != nil && !g.dead {
		s.auth.revoke(g)
	}
}

func (a *authority) revoke(g *grant) {
	a.kill(g, stateRevoked)
	a.byUser[g.user.ID] = slices.DeleteFunc(a.byUser[g.user.ID], func(o *grant) bool { return o == g })
}

// ExpireAccessTokens makes every live access token INVALID_TOKEN at once, or only
// those of the refresh tokens given. Nothing tells the clients.
func (s *Server) ExpireAccessTokens(refreshTokens ...string) {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	if len(refreshTokens) == 0 {
		for _, g := range s.auth.grants {
			s.auth.end(g, stateExpired)
		}
		return
	}
	for _, token := range refreshTokens {
		if g := s.auth.grants[token]; g != nil {
			s.auth.end(g, stateExpired)
		}
	}
}

// AccessToken mints an access token beside the limits, for tests that want no refresh.
// It counts neither as a refresh nor as a mint. It panics when the refresh token is unknown.
func (s *Server) AccessToken(refreshToken string) string {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	g := s.auth.grants[refreshToken]
	if g == nil || g.dead {
		panic("zohotest: no such refresh token")
	}
	return s.auth.mint(g, s.now()).token
}

// GrantID names a refresh token in the ledger ("grant-1"), even after its end.
func (s *Server) GrantID(refreshToken string) string {
	s.auth.mu.RLock()
	defer s.auth.mu.RUnlock()
	if g := s.auth.grants[refreshToken]; g != nil {
		return g.id
	}
	return ""
}

// LiveAccessTokens is the number of usable access tokens of a refresh token.
func (s *Server) LiveAccessTokens(refreshToken string) int {
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	g := s.auth.grants[refreshToken]
	if g == nil {
		return 0
	}
	s.auth.expire(g, s.now())
	return len(g.live)
}

// Secrets returns what must never leave a worker: every token still remembered, the
// client secret and the cookie.
func (s *Server) Secrets() []string {
	s.auth.mu.RLock()
	defer s.auth.mu.RUnlock()
	all := slices.Collect(maps.Keys(s.auth.access))
	all = slices.AppendSeq(all, maps.Keys(s.auth.grants))
	all = slices.AppendSeq(all, maps.Keys(s.auth.codes))
	if s.opt.ClientSecret != "" {
		all = append(all, s.opt.ClientSecret)
	}
	return append(all, s.cookie)
}

// mint makes an access token and evicts the oldest beyond maxLive.
func (a *authority) mint(g *grant, now time.Time) *access {
	a.expire(g, now)
	a.serial++
	g.generation++
	t := &access{
		token: newToken(), grant: g, serial: a.serial, generation: g.generation,
		expires: now.Add(a.life), state: stateLive,
	}
	a.access[t.token] = t
	if g.live = append(g.live, t); len(g.live) > maxLive {
		g.live[0].state = stateEvicted
		a.bury(g.live[0])
		g.live = slices.Delete(g.live, 0, 1)
	}
	return t
}

// expire drops the tokens whose time has come.
func (a *authority) expire(g *grant, now time.Time) {
	for len(g.live) > 0 && !now.Before(g.live[0].expires) {
		g.live[0].state = stateExpired
		a.bury(g.live[0])
		g.live = slices.Delete(g.live, 0, 1)
	}
}

// throttled tells whether a grant may mint no more. Ten mints (most) within ten minutes
// close it until the first of them is ten minutes old; whoever knocks again while
// it is closed keeps it closed for another ten minutes.
func (g *grant) throttled(now time.Time, most int) bool {
	if most < 0 {
		return false
	}
	if now.Before(g.blocked) {
		g.blocked = now.Add(mintWindow)
		return true
	}
	g.mints = slices.DeleteFunc(g.mints, func(t time.Time) bool { return now.Sub(t) >= mintWindow })
	if len(g.mints) < most {
		return false
	}
	g.blocked = g.mints[len(g.mints)-most].Add(mintWindow)
	return true
}

// identify finds out who calls the API, and refuses the call if it may not.
func (x *exchange) identify() {
	scheme, token, _ := strings.Cut(x.r.Header.Get("Authorization"), " ")
	if scheme != "Zoho-oauthtoken" && scheme != "Bearer" || token == "" {
		if len(x.call.Header["Authorization"]) > 0 {
			x.call.Header.Set("Authorization", "***")
		}
		x.refused = authenticationFailure()
		return
	}
	x.call.Header["Authorization"] = []string{scheme + " ***"}
	now := x.s.now()
	a := &x.s.auth
	a.mu.RLock()
	t := a.access[token]
	state := ""
	if t != nil {
		if state = t.state; state == stateLive && !now.Before(t.expires) {
			state = stateExpired
		}
	}
	a.mu.RUnlock()
	if t == nil {
		x.refused = invalidToken()
		return
	}
	x.access, x.user = t, t.grant.user
	x.call.Token = TokenRef{Serial: t.serial, Generation: t.generation, Grant: t.grant.id, State: state}
	x.call.Grant, x.call.UserID, x.call.OrgID = t.grant.id, x.user.ID, x.user.OrgID
	if state != stateLive {
		x.refused = invalidToken()
	}
	x.s.mu.RLock()
	x.org = x.s.orgs[x.user.OrgID]
	x.s.mu.RUnlock()
}

// allows tells whether the grant covers an operation, such as "modules.leads.CREATE"
// or "coql.READ". A group, a group and module, and ALL all cover it.
func (g *grant) allows(service, operation string) bool {
	if len(g.scopes) == 0 {
		return true
	}
	group, _, _ := strings.Cut(operation, ".")
	prefix, verb := operation[:strings.LastIndexByte(operation, '.')], operation[strings.LastIndexByte(operation, '.')+1:]
	for _, scope := range g.scopes {
		for _, able := range []string{
			prefix + ".ALL", prefix + "." + verb, group + ".ALL", group + "." + verb,
		} {
			if strings.EqualFold(scope, service+"."+able) {
				return true
			}
		}
	}
	return false
}

// oauthError is a failure of the token endpoint, which says 200 all the same.
func oauthError(code string) *result {
	return reply(http.StatusOK, code, params{"error": code})
}

// accessDenied is the throttle of the token endpoint, word for word.
func accessDenied(status int) *result {
	return &result{code: "Access Denied", Answer: Answer{Status: status, Body: []byte(
		`{"error_description":"You have made too many requests continuously. Please try again after some time.","error":"Access Denied","status":"failure"}`,
	)}}
}
