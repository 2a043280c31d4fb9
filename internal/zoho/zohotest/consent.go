package zohotest

import (
	"bytes"
	"cmp"
	"html"
	"html/template"
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

// consent is GET /oauth/v2/auth: a page to choose a user and an environment, or
// the redirect back. The page's form adds approve=<user id> and environment, or
// deny=1, to the parameters that it came with.
func (s *Server) consent(x *exchange) *result {
	p := x.form
	target, err := url.Parse(p["redirect_uri"])
	switch {
	case p["client_id"] == "" || s.opt.ClientID != "" && p["client_id"] != s.opt.ClientID:
		return page("Invalid Client")
	case err != nil || target.Scheme == "" || target.Host == "":
		return page("Invalid Redirect Uri")
	case p["response_type"] != "code":
		return page("Invalid Response Type")
	case p["scope"] == "" || strings.Contains(p["scope"], " "): // they are separated by commas
		return page("Invalid OAuth Scope")
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
		return s.choose(x.r.URL, strings.Split(p["scope"], ","), users)
	}
	c := Consent{
		RedirectURI: p["redirect_uri"], Scopes: strings.Split(p["scope"], ","),
		CodeChallenge: p["code_challenge"], CodeChallengeMethod: p["code_challenge_method"],
		Online: p["access_type"] != "offline", Environment: p["environment"],
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

// places are the data centres in words.
var places = map[string]string{
	"us": "United States", "eu": "Europe", "in": "India", "au": "Australia", "jp": "Japan", "cn": "China",
	"ca": "Canada", "sa": "Saudi Arabia", "uk": "United Kingdom", "ae": "United Arab Emirates",
}

var consentPage = template.Must(template.New("consent").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Zoho simulator</title>
<style>
:root{--page:#f4f1ec;--card:#fff;--text:#1d1b18;--soft:#655f57;--line:#ddd6cb;--edge:#8a8277;--go:#0b6b46;--go-text:#fff;--wash:#eaf5ef}
@media (prefers-color-scheme:dark){:root{--page:#151412;--card:#201e1b;--text:#f1ede6;--soft:#b0a89c;--line:#38342f;--edge:#8b8378;--go:#5fcf9c;--go-text:#0f1512;--wash:#1b2c24}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 Inter,ui-sans-serif,system-ui,"Segoe UI",sans-serif}
main{max-width:34rem;margin:0 auto;padding:clamp(1rem,5vw,3rem) 1rem}.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:clamp(1.1rem,4vw,1.9rem)}
.tag{display:inline-block;margin:0 0 1rem;padding:.2rem .7rem;border:1px dashed var(--edge);border-radius:99px;font-size:.8125rem;color:var(--soft)}
h1{font-size:1.35rem;line-height:1.25;margin:0 0 .4rem}p{margin:0;color:var(--soft)}fieldset{border:0;padding:0;margin:1.4rem 0 0}legend{font-weight:600;padding:0;margin-bottom:.5rem}
label{display:flex;gap:.7rem;align-items:center;padding:.6rem .9rem;border:1px solid var(--line);border-radius:10px;margin-top:.5rem;cursor:pointer}
label:has(:checked){border-color:var(--go);background:var(--wash)}label:has(:focus-visible){outline:3px solid var(--go);outline-offset:2px}
label input{accent-color:var(--go);margin:0;width:1.05rem;height:1.05rem;flex:none}label b{display:block}label small{display:block;line-height:1.4;color:var(--soft);font-size:.8125rem;overflow-wrap:anywhere}
.row{display:flex;flex-wrap:wrap;gap:.5rem}.row label{margin:0}
details{margin-top:1.2rem}summary{cursor:pointer;color:var(--soft)}li{font-family:ui-monospace,monospace;font-size:.8125rem;overflow-wrap:anywhere}
.do{display:flex;gap:.75rem;margin-top:1.6rem;flex-wrap:wrap}button{flex:1;min-height:44px;border-radius:10px;border:1px solid var(--edge);background:transparent;color:var(--text);font:inherit;font-weight:600;cursor:pointer}
button.go{background:var(--go);border-color:var(--go);color:var(--go-text)}button:focus-visible{outline:3px solid var(--go);outline-offset:2px}
</style></head><body><main><span class="tag">Zoho simulator: nothing here is Zoho’s</span><form class="card" method="get" action="{{.Action}}">
<h1>This app would like access to your Zoho CRM</h1><p>Choose who you are. At Zoho you would sign in here.</p>
{{range .Hidden}}<input type="hidden" name="{{.Name}}" value="{{.Value}}">{{end}}
<fieldset><legend>User and organisation</legend>{{range $i, $u := .Users}}<label><input type="radio" name="approve" value="{{$u.ID}}"{{if eq $i 0}} checked{{end}}><span><b>{{$u.Name}}</b><small>{{$u.Email}} · {{$u.Org}} · {{$u.Place}}</small></span></label>{{end}}</fieldset>
<fieldset><legend>Environment</legend><div class="row"><label><input type="radio" name="environment" value="production" checked>Production</label><label><input type="radio" name="environment" value="sandbox">Sandbox</label><label><input type="radio" name="environment" value="developer">Developer</label></div></fieldset>
<details><summary>{{len .Scopes}} scopes</summary><ul>{{range .Scopes}}<li>{{.}}</li>{{end}}</ul></details>
<div class="do"><button class="go">Accept</button><button name="deny" value="1">Reject</button></div>
</form></main></body></html>
`))

// choose is the consent page itself.
func (s *Server) choose(here *url.URL, scopes []string, users map[string]User) *result {
	type pair struct{ Name, Value string }
	type choice struct{ ID, Name, Email, Org, Place string }
	var data struct {
		Action string
		Hidden []pair
		Users  []choice
		Scopes []string
	}
	data.Action, data.Scopes = here.Path, scopes
	for name, values := range here.Query() {
		data.Hidden = append(data.Hidden, pair{name, values[0]})
	}
	slices.SortFunc(data.Hidden, func(a, b pair) int { return strings.Compare(a.Name, b.Name) })
	for _, id := range slices.Sorted(maps.Keys(users)) {
		u := users[id]
		data.Users = append(data.Users, choice{id, cmp.Or(u.Name, u.ID), u.Email, s.org(u.OrgID).name(), cmp.Or(places[u.Location], u.Location)})
	}
	var body bytes.Buffer
	if err := consentPage.Execute(&body, data); err != nil {
		panic(err) // strings into a buffer
	}
	return &result{Answer: Answer{
		Status: http.StatusOK, Header: http.Header{"Content-Type": {"text/html;charset=UTF-8"}}, Body: body.Bytes(),
	}}
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

// page is a refusal of the consent page.
func page(title string) *result {
	return &result{code: title, Answer: Answer{
		Status: http.StatusBadRequest, Header: http.Header{"Content-Type": {"text/html;charset=UTF-8"}},
		Body: []byte("<!doctype html>\n<title>Zoho simulator</title>\n<h1>" + html.EscapeString(title) + "</h1>\n"),
	}}
}
