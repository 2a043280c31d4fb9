package zohotest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"mime/multipart"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var tokenShape = regexp.MustCompile(`^1000\.[0-9a-f]{32}\.[0-9a-f]{32}$`)

const deniedBody = `{"error_description":"You have made too many requests continuously. Please try again after some time.","error":"Access Denied","status":"failure"}`

func TestRefresh(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	got := b.refreshWith(b.refresh)
	access, _ := got.part(t, "access_token").(string)
	if !tokenShape.MatchString(access) || !tokenShape.MatchString(b.refresh) {
		t.Errorf("tokens %q %q", access, b.refresh)
	}
	got.want(t, 200, `{"access_token":"`+access+`","api_domain":"https://www.zohoapis.com","token_type":"Bearer","expires_in":3600}`)
	for _, scheme := range []string{"Zoho-oauthtoken ", "Bearer "} {
		if r := b.call("GET", "/crm/v8/org", "", "Authorization", scheme+access); r.status != 200 {
			t.Errorf("%s: %d %s", scheme, r.status, r.body)
		}
	}
	c := b.Find(Match{Endpoint: Token})[0]
	if c.Token.Serial != 2 || c.Token.Generation != 2 || c.Grant != b.GrantID(b.refresh) || c.Code != minted || c.OrgID != demoOrg {
		t.Errorf("ledger has %+v", c)
	}
}

func TestTokenEndpointRefusals(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	revoked := b.GrantRefreshToken(demoUser)
	b.RevokeRefreshToken(revoked)
	for name, c := range map[string]struct {
		change []string
		want   string
	}{
		"unknown token": {[]string{"refresh_token", "1000.x.y"}, `{"error":"invalid_code"}`},
		"revoked token": {[]string{"refresh_token", revoked}, `{"error":"invalid_code"}`},
		"wrong client":  {[]string{"client_id", "1000.OTHER"}, `{"error":"invalid_client"}`},
		"wrong secret":  {[]string{"client_secret", "no"}, `{"error":"invalid_client_secret"}`},
		"wrong grant":   {[]string{"grant_type", "password"}, `{"error":"general_error"}`},
	} {
		t.Run(name, func(t *testing.T) { b.refreshWith(b.refresh, c.change...).want(t, 200, c.want) })
	}
	form := "grant_type=refresh_token&client_id=1000.CLIENT&client_secret=the-client-secret&refresh_token=" + b.refresh
	b.call("POST", "/oauth/v2/token", `{"client_id":"1000.CLIENT"}`, "Content-Type", "application/json").want(t, 200, `{"error":"invalid_client"}`)
	if r := b.call("GET", "/oauth/v2/token?"+form, ""); r.status != 500 || !strings.Contains(r.body, "server error") {
		t.Errorf("GET: %d %s", r.status, r.body)
	}
	if r := b.call("POST", "/oauth/v2/token?"+form, ""); r.part(t, "access_token") == nil {
		t.Errorf("query: %s", r.body)
	}
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	values, _ := url.ParseQuery(form)
	for name := range values {
		_ = w.WriteField(name, values.Get(name))
	}
	_ = w.Close()
	if r := b.call("POST", "/oauth/v2/token", body.String(), "Content-Type", w.FormDataContentType()); r.part(t, "access_token") == nil {
		t.Errorf("multipart: %s", r.body)
	}
	if b.Refreshes() != 2 || b.RefreshAttempts() != 7 {
		t.Errorf("%d refreshes, %d attempts", b.Refreshes(), b.RefreshAttempts())
	}
}

func TestThrottle(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	other := b.GrantRefreshToken(demoUser)
	for range 10 {
		if r := b.refreshWith(b.refresh); r.part(t, "access_token") == nil {
			t.Fatal(r.body)
		}
	}
	b.refreshWith(b.refresh).want(t, 400, deniedBody)
	if r := b.refreshWith(other); r.part(t, "access_token") == nil {
		t.Error("the throttle of one grant hit another:", r.body)
	}
	b.clock.pass(9 * time.Minute)
	b.refreshWith(b.refresh).want(t, 400, deniedBody) // and closes it for ten minutes more
	b.clock.pass(9 * time.Minute)
	b.refreshWith(b.refresh).want(t, 400, deniedBody)
	b.clock.pass(10 * time.Minute)
	if r := b.refreshWith(b.refresh); r.part(t, "access_token") == nil {
		t.Error("still closed:", r.body)
	}
}

func TestThrottleOpensByItself(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	for range 11 {
		b.refreshWith(b.refresh)
	}
	b.clock.pass(10 * time.Minute)
	if r := b.refreshWith(b.refresh); r.part(t, "access_token") == nil {
		t.Error(r.body)
	}
}

func TestAccessTokensDie(t *testing.T) {
	t.Parallel()
	invalid := `{"code":"INVALID_TOKEN","details":{},"message":"invalid oauth token","status":"error"}`
	t.Run("after an hour", func(t *testing.T) {
		b := newBox(t)
		b.clock.pass(time.Hour - time.Second)
		if r := b.call("GET", "/crm/v8/org", ""); r.status != 200 {
			t.Error(r.body)
		}
		b.clock.pass(time.Second)
		b.call("GET", "/crm/v8/org", "").want(t, 401, invalid)
		if c := b.Calls()[1]; c.Token.State != stateExpired || c.Token.Serial != 1 || c.Code != "INVALID_TOKEN" {
			t.Errorf("%+v", c)
		}
	})
	t.Run("the oldest of eleven", func(t *testing.T) {
		b := newBox(t)
		for range 9 {
			b.AccessToken(b.refresh)
		}
		if r := b.call("GET", "/crm/v8/org", ""); r.status != 200 || b.LiveAccessTokens(b.refresh) != 10 {
			t.Error(r.body)
		}
		b.AccessToken(b.refresh)
		b.call("GET", "/crm/v8/org", "").want(t, 401, invalid)
		if n := b.LiveAccessTokens(b.refresh); n != 10 {
			t.Error(n, "live")
		}
	})
	t.Run("in a storm", func(t *testing.T) {
		b := newBox(t)
		other := b.AccessToken(b.GrantRefreshToken(demoUser))
		b.ExpireAccessTokens(b.refresh)
		b.call("GET", "/crm/v8/org", "").want(t, 401, invalid)
		if r := b.call("GET", "/crm/v8/org", "", "Authorization", "Bearer "+other); r.status != 200 {
			t.Error(r.body)
		}
		b.ExpireAccessTokens()
		b.call("GET", "/crm/v8/org", "", "Authorization", "Bearer "+other).want(t, 401, invalid)
	})
	t.Run("with the refresh token", func(t *testing.T) {
		b := newBox(t)
		b.call("POST", "/oauth/v2/token/revoke?token="+b.refresh, "").want(t, 200, `{"status":"success"}`)
		b.call("GET", "/crm/v8/org", "").want(t, 401, invalid)
		if r := b.call("POST", "/oauth/v2/token/revoke?token="+b.refresh, ""); r.status != 400 {
			t.Error(r.status)
		}
	})
	t.Run("when the 21st grant comes", func(t *testing.T) {
		b := newBox(t)
		for range 19 {
			b.GrantRefreshToken(demoUser)
		}
		if r := b.call("GET", "/crm/v8/org", ""); r.status != 200 {
			t.Error(r.body)
		}
		b.GrantRefreshToken(demoUser)
		b.call("GET", "/crm/v8/org", "").want(t, 401, invalid)
		b.refreshWith(b.refresh).want(t, 200, `{"error":"invalid_code"}`)
	})
}

func TestAuthorizationBodies(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	narrow := b.AccessToken(b.GrantRefreshToken(demoUser, "ZohoCRM.modules.leads.READ", "ZohoCRM.modules.Contacts.ALL"))
	failure := `{"code":"AUTHENTICATION_FAILURE","details":{},"message":"Authentication failed","status":"error"}`
	mismatch := `{"code":"OAUTH_SCOPE_MISMATCH","details":{},"message":"invalid oauth scope to access this URL","status":"error"}`
	for _, c := range []struct{ method, path, auth, want string }{
		{"GET", "/crm/v8/org", "", failure},
		{"GET", "/crm/v8/org", "Basic abc", failure},
		{"GET", "/crm/v8/org", "Zoho-oauthtoken", failure},
		{"GET", "/crm/v8/org?access_token=" + b.access, "", failure},
		{"GET", "/crm/v8/org", "Zoho-oauthtoken 1000.a.b", `{"code":"INVALID_TOKEN","details":{},"message":"invalid oauth token","status":"error"}`},
		{"GET", "/crm/v8/org", "Bearer " + narrow, mismatch},
		{"POST", "/crm/v8/Leads", "Bearer " + narrow, mismatch},
		{"GET", "/crm/v8/Deals?fields=id", "Bearer " + narrow, mismatch},
		{"GET", "/crm/v8/Contacts/search?word=x", "Bearer " + narrow, mismatch},
	} {
		b.call(c.method, c.path, "", "Authorization", c.auth).want(t, 401, c.want)
	}
	b.call("GET", "/crm/v8/Leads?fields=id", "", "Authorization", "Bearer "+narrow).want(t, 204, "")
}

func TestCodeExchange(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	verifier := "a-verifier-that-is-long-enough-to-be-allowed-43"
	sum := sha256.Sum256([]byte(verifier))
	consent := Consent{
		RedirectURI: "https://worker.example/callback", Scopes: []string{"ZohoCRM.modules.ALL", "ZohoCRM.org.READ"},
		CodeChallenge: base64.RawURLEncoding.EncodeToString(sum[:]), CodeChallengeMethod: "S256",
	}
	exchange := func(code string, change ...string) reply3 {
		return b.refreshWith("", append([]string{
			"grant_type", "authorization_code", "code", code, "redirect_uri", consent.RedirectURI, "code_verifier", verifier,
		}, change...)...)
	}
	code := b.AuthorizationCode(demoUser, consent)
	got := exchange(code)
	refresh, _ := got.part(t, "refresh_token").(string)
	if !tokenShape.MatchString(refresh) || got.part(t, "scope") != "ZohoCRM.modules.ALL ZohoCRM.org.READ" {
		t.Fatal(got.body)
	}
	if r := b.refreshWith(refresh); r.part(t, "access_token") == nil || r.part(t, "refresh_token") != nil {
		t.Error(r.body)
	}
	exchange(code).want(t, 200, `{"error":"invalid_code"}`) // single use
	exchange(b.AuthorizationCode(demoUser, consent), "redirect_uri", "https://evil.example/").want(t, 200, `{"error":"invalid_redirect_uri"}`)
	exchange(b.AuthorizationCode(demoUser, consent), "code_verifier", "wrong").want(t, 200, `{"error":"invalid_code"}`)
	late := b.AuthorizationCode(demoUser, consent)
	b.clock.pass(time.Minute + time.Second) // the stricter of what sources say
	exchange(late).want(t, 200, `{"error":"invalid_code"}`)
}

func TestConsentPage(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.AddUser(User{ID: "77", Name: "Max <script>", OrgID: demoOrg, Location: "eu"})
	base := "/oauth/v2/auth?response_type=code&client_id=1000.CLIENT&scope=ZohoCRM.modules.ALL&redirect_uri=https%3A%2F%2Fw.example%2Fcb&access_type=offline&state=s%261"
	page := b.call("GET", base, "")
	if page.status != 200 || !strings.Contains(page.body, `name="approve" value="77"`) || strings.Contains(page.body, "<script>") {
		t.Fatal(page.body)
	}
	to, _ := url.Parse(b.call("GET", base+"&approve=77", "").header.Get("Location"))
	q := to.Query()
	if to.Host != "w.example" || q.Get("location") != "eu" || q.Get("accounts-server") != "https://accounts.zoho.eu" || q.Get("state") != "s&1" {
		t.Error(to)
	}
	got := b.refreshWith("", "grant_type", "authorization_code", "code", q.Get("code"), "redirect_uri", "https://w.example/cb")
	if got.part(t, "refresh_token") == nil || got.part(t, "api_domain") != "https://www.zohoapis.eu" {
		t.Error(got.body)
	}
	if to := b.call("GET", base+"&deny=1", "").header.Get("Location"); !strings.Contains(to, "error=access_denied") {
		t.Error(to)
	}
	b.ApproveFor("77")
	second, _ := url.Parse(b.call("GET", base, "").header.Get("Location"))
	got = b.refreshWith("", "grant_type", "authorization_code", "code", second.Query().Get("code"), "redirect_uri", "https://w.example/cb")
	if got.part(t, "refresh_token") != nil || got.part(t, "access_token") == nil {
		t.Error("a second refresh token without prompt=consent:", got.body)
	}
	third, _ := url.Parse(b.call("GET", base+"&prompt=consent", "").header.Get("Location"))
	got = b.refreshWith("", "grant_type", "authorization_code", "code", third.Query().Get("code"), "redirect_uri", "https://w.example/cb")
	if got.part(t, "refresh_token") == nil {
		t.Error(got.body)
	}
	for _, wrong := range []string{"scope=A+B", "client_id=no", "response_type=token", "redirect_uri=x"} {
		name, _, _ := strings.Cut(wrong, "=")
		u, _ := url.Parse(base)
		q := u.Query()
		q.Del(name)
		if r := b.call("GET", u.Path+"?"+q.Encode()+"&"+wrong, ""); r.status != 400 {
			t.Errorf("%s: %d", wrong, r.status)
		}
	}
	if r := b.call("GET", "/oauth/serverinfo", ""); r.part(t, "locations", "cn") != "https://accounts.zoho.com.cn" || r.part(t, "result") != "success" {
		t.Error(r.body)
	}
}

func TestShortLives(t *testing.T) {
	t.Parallel()
	b := newBox(t, func(o *Options, _ *Org) { o.TokenLife, o.MaxMints = 2*time.Second, -1 })
	for range 30 {
		if r := b.refreshWith(b.refresh); r.part(t, "expires_in") != 2.0 {
			t.Fatal(r.body)
		}
	}
	b.clock.pass(2 * time.Second)
	if n := b.LiveAccessTokens(b.refresh); n != 0 {
		t.Error(n)
	}
}

func TestNoSecretInLedger(t *testing.T) {
	t.Parallel()
	b := newBox(t)
	b.refreshWith(b.refresh)
	b.call("GET", "/crm/v8/org", "")
	b.call("POST", "/oauth/v2/token/revoke?token="+b.refresh, "")
	for _, c := range b.Calls() {
		seen := c.RawQuery + string(c.Body) + strings.Join(slices.Concat(c.Header["Authorization"]), " ")
		for _, secret := range b.Secrets() {
			if strings.Contains(seen, secret) {
				t.Errorf("call %d shows a secret: %s", c.Seq, seen)
			}
		}
	}
}
