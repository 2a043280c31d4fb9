package zohotest

import (
	"html"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// ApproveFor makes the consent page approve at once, as that user; "" brings the page back.
func (s *Server) ApproveFor(userID string) {
	if userID != "" {
		s.user(userID)
	}
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.autoFor = userID
}

// consent is GET /oauth/v2/auth: a page to choose a user, or the redirect back.
// The page's own links carry one parameter more: approve=<user id>, or deny=1.
func (s *Server) consent(x *exchange) *result {
	p := x.form
	target, err := url.Parse(p["redirect_uri"])
	switch {
	case p["client_id"] == "" || s.opt.ClientID != "" && p["client_id"] != s.opt.ClientID:
		return page(http.StatusBadRequest, "Invalid Client", "")
	case err != nil || target.Scheme == "" || target.Host == "":
		return page(http.StatusBadRequest, "Invalid Redirect Uri", "")
	case p["response_type"] != "code":
		return page(http.StatusBadRequest, "Invalid Response Type", "")
	case p["scope"] == "" || strings.Contains(p["scope"], " "): // they are separated by commas
		return page(http.StatusBadRequest, "Invalid OAuth Scope", "")
	}
	if p["deny"] != "" {
		return back(target, p["state"], "error", "access_denied")
	}
	s.auth.mu.RLock()
	auto := s.auth.autoFor
	s.auth.mu.RUnlock()
	users := s.Users()
	u, ok := users[p["approve"]]
	if !ok {
		u, ok = users[auto]
	}
	if !ok {
		return page(http.StatusOK, "zohotest would like to access the following data: "+p["scope"], s.choices(x.r.URL, users))
	}
	c := Consent{
		RedirectURI: p["redirect_uri"], Scopes: strings.Split(p["scope"], ","),
		CodeChallenge: p["code_challenge"], CodeChallengeMethod: p["code_challenge_method"],
		Online: p["access_type"] != "offline",
	}
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	now, recent := s.now(), 0
	for _, old := range s.auth.codes {
		if old.user.ID == u.ID && now.Sub(old.born) < mintWindow {
			recent++
		}
	}
	if recent >= maxCodes {
		return back(target, p["state"], "error", "access_denied")
	}
	if p["prompt"] != "consent" && len(s.auth.byUser[u.ID]) > 0 {
		c.Online = true // a second refresh token is only given when asked for again
	}
	return back(target, p["state"],
		"code", s.auth.newCode(&u, c, now), "location", u.Location, "accounts-server", s.hosts(&u).accounts)
}

// choices are the links to approve as each user, and to deny.
func (s *Server) choices(here *url.URL, users map[string]User) string {
	var b strings.Builder
	link := func(name, value, text string) {
		q := here.Query()
		q.Set(name, value)
		b.WriteString(`<p><a href="` + html.EscapeString(here.Path+"?"+q.Encode()) + `">` + html.EscapeString(text) + "</a></p>\n")
	}
	for _, id := range slices.Sorted(maps.Keys(users)) {
		u := users[id]
		link("approve", id, "Accept as "+u.Name+" <"+u.Email+">, "+s.org(u.OrgID).name())
	}
	link("deny", "1", "Reject")
	return b.String()
}

// back redirects to the client.
func back(target *url.URL, state string, pairs ...string) *result {
	q := target.Query()
	for i := 0; i < len(pairs); i += 2 {
		q.Set(pairs[i], pairs[i+1])
	}
	if state != "" {
		q.Set("state", state)
	}
	to := *target
	to.RawQuery = q.Encode()
	return &result{code: pairs[0], Answer: Answer{Status: http.StatusFound, Header: http.Header{"Location": {to.String()}}}}
}

func page(status int, title, body string) *result {
	return &result{code: title, Answer: Answer{
		Status: status, Header: http.Header{"Content-Type": {"text/html;charset=UTF-8"}},
		Body: []byte("<!doctype html>\n<title>Zoho simulator</title>\n<h1>" + html.EscapeString(title) + "</h1>\n" + body),
	}}
}
