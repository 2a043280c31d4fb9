package zoho

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"zoho-worker/internal/secret"
)

var quiet = log.New(io.Discard, "", 0)

// Every answer of the token endpoint that zoho-facts 1.4 and 1.5 name, and row B36.
func TestTokenAnswers(t *testing.T) {
	t.Parallel()
	const hour = time.Hour
	tokenWith := func(more string) string {
		return `{"access_token":"` + markedToken + `","token_type":"Bearer"` + more + `}`
	}
	domain := `,"api_domain":"https://www.zohoapis.eu"`
	throttled := `{"error_description":"You have made too many requests continuously. Please try again after some time.","error":"Access Denied","status":"failure"}`
	type header map[string]string
	for _, row := range []struct {
		name   string
		status int
		header header
		body   string
		want   Grant // of a refresh, AccessToken aside
		err    Error // Kind empty: none
	}{
		{"refresh", 200, nil, tokenWith(domain + `,"expires_in":3600`), Grant{APIDomain: "https://www.zohoapis.eu", ExpiresIn: hour}, Error{}},
		{"short life", 200, nil, tokenWith(`,"expires_in":60`), Grant{ExpiresIn: time.Minute}, Error{}},
		{"milliseconds", 200, nil, tokenWith(`,"expires_in_sec":3600,"expires_in":3600000`), Grant{ExpiresIn: hour}, Error{}},
		{"milliseconds, short", 200, nil, tokenWith(`,"expires_in_sec":30,"expires_in":30000`), Grant{ExpiresIn: 30 * time.Second}, Error{}},
		{"milliseconds alone", 200, nil, tokenWith(`,"expires_in":3600000`), Grant{ExpiresIn: hour}, Error{}},
		{"seconds in a string", 200, nil, tokenWith(`,"expires_in":"1800"`), Grant{ExpiresIn: 30 * time.Minute}, Error{}},
		{"no life", 200, nil, tokenWith(``), Grant{ExpiresIn: hour}, Error{}},
		{"negative life", 200, nil, tokenWith(`,"expires_in":-5`), Grant{ExpiresIn: hour}, Error{}},
		{"no api_domain", 200, nil, tokenWith(`,"expires_in":3600`), Grant{ExpiresIn: hour}, Error{}},
		{"empty api_domain", 200, nil, tokenWith(`,"api_domain":""`), Grant{ExpiresIn: hour}, Error{}},
		{"sandbox", 200, nil, tokenWith(`,"api_domain":"https://sandbox.zohoapis.eu"`), Grant{APIDomain: "https://sandbox.zohoapis.eu", ExpiresIn: hour}, Error{}},
		{"developer", 200, nil, tokenWith(`,"api_domain":"https://developer.zohoapis.eu"`), Grant{APIDomain: "https://developer.zohoapis.eu", ExpiresIn: hour}, Error{}},
		{"without www", 200, nil, tokenWith(`,"api_domain":"https://zohoapis.ca"`), Grant{APIDomain: "https://zohoapis.ca", ExpiresIn: hour}, Error{}},
		{"scope", 200, nil, tokenWith(`,"scope":"ZohoCRM.modules.ALL ZohoCRM.org.ALL"`), Grant{ExpiresIn: hour, Scopes: []string{"ZohoCRM.modules.ALL", "ZohoCRM.org.ALL"}}, Error{}},
		{"scope with commas", 200, nil, tokenWith(`,"scope":"ZohoCRM.modules.ALL,ZohoCRM.org.ALL"`), Grant{ExpiresIn: hour, Scopes: []string{"ZohoCRM.modules.ALL", "ZohoCRM.org.ALL"}}, Error{}},
		{"refresh token comes along", 200, nil, tokenWith(`,"refresh_token":"new"`), Grant{RefreshToken: secret.New("new"), ExpiresIn: hour}, Error{}},
		{"as text/plain", 200, header{"Content-Type": "text/plain"}, tokenWith(domain), Grant{APIDomain: "https://www.zohoapis.eu", ExpiresIn: hour}, Error{}},
		{"as text/html", 200, header{"Content-Type": "text/html"}, tokenWith(domain), Grant{APIDomain: "https://www.zohoapis.eu", ExpiresIn: hour}, Error{}},
		{"gzip unasked", 200, header{"Content-Encoding": "gzip"}, zipped(tokenWith(domain)), Grant{APIDomain: "https://www.zohoapis.eu", ExpiresIn: hour}, Error{}},

		{"B36 foreign host", 200, nil, tokenWith(`,"api_domain":"https://evil.example"`), Grant{}, Error{Kind: BadAnswer, Code: CodeBadAPIDomain}},
		{"B36 plain http", 200, nil, tokenWith(`,"api_domain":"http://www.zohoapis.eu"`), Grant{}, Error{Kind: BadAnswer, Code: CodeBadAPIDomain}},
		{"B36 suffix", 200, nil, tokenWith(`,"api_domain":"https://www.zohoapis.eu.evil.example"`), Grant{}, Error{Kind: BadAnswer, Code: CodeBadAPIDomain}},
		{"B36 user", 200, nil, tokenWith(`,"api_domain":"https://www.zohoapis.eu@evil"`), Grant{}, Error{Kind: BadAnswer, Code: CodeBadAPIDomain}},
		{"B36 path", 200, nil, tokenWith(`,"api_domain":"https://www.zohoapis.eu/"`), Grant{}, Error{Kind: BadAnswer, Code: CodeBadAPIDomain}},
		{"other product", 200, nil, tokenWith(`,"api_domain":"https://writer.zoho.com"`), Grant{}, Error{Kind: BadAnswer, Code: CodeBadAPIDomain}},
		{"api_domain a number", 200, nil, tokenWith(`,"api_domain":7`), Grant{}, Error{Kind: BadAnswer, Code: CodeBadAPIDomain}},

		{"dead, 200", 200, nil, `{"error":"invalid_code"}`, Grant{}, Error{Kind: DeadGrant, Code: "invalid_code"}},
		{"dead, 400", 400, nil, `{"error":"invalid_code"}`, Grant{}, Error{Kind: DeadGrant, Code: "invalid_code"}},
		{"dead, but a failing server", 500, nil, `{"error":"invalid_code"}`, Grant{}, Error{Kind: Unavailable, Code: "invalid_code"}},
		{"error beside a token", 200, nil, tokenWith(`,"error":"invalid_code"`), Grant{}, Error{Kind: DeadGrant, Code: "invalid_code"}},
		{"throttled, 400", 400, nil, throttled, Grant{}, Error{Kind: Throttled, Code: "Access Denied"}},
		{"F30 throttled, 200", 200, nil, throttled, Grant{}, Error{Kind: Throttled, Code: "Access Denied"}},
		{"throttled, 200, no description", 200, nil, `{"error":"Access Denied"}`, Grant{}, Error{Kind: Throttled, Code: "Access Denied"}},
		{"throttled, older page", 200, nil, `{"message":"Access Denied"}`, Grant{}, Error{Kind: Throttled, Code: "Access Denied"}},
		{"throttled, older page, in words", 400, nil, `{"message":"You have made too many requests continuously."}`, Grant{}, Error{Kind: Throttled}},
		{"throttled, only described", 400, nil, `{"error":"invalid_code","error_description":"You have made too many requests continuously."}`, Grant{}, Error{Kind: Throttled, Code: "invalid_code"}},
		{"too many codes", 400, nil, `{"error":"access_denied"}`, Grant{}, Error{Kind: Throttled, Code: "access_denied"}},
		{"429", 429, header{"Retry-After": "120"}, "<html>", Grant{}, Error{Kind: Throttled, RetryAfter: 2 * time.Minute}},
		{"client", 200, nil, `{"error":"invalid_client"}`, Grant{}, Error{Kind: Misconfigured, Code: "invalid_client"}},
		{"secret", 200, nil, `{"error":"invalid_client_secret"}`, Grant{}, Error{Kind: Misconfigured, Code: "invalid_client_secret"}},
		{"redirect", 200, nil, `{"error":"invalid_redirect_uri"}`, Grant{}, Error{Kind: Misconfigured, Code: "invalid_redirect_uri"}},
		{"scope refused", 200, nil, `{"error":"invalid_scope"}`, Grant{}, Error{Kind: Misconfigured, Code: "invalid_scope"}},
		{"org", 200, nil, `{"error":"missing_org_info"}`, Grant{}, Error{Kind: Misconfigured, Code: "missing_org_info"}},
		{"other data centre", 200, nil, `{"error":"other_dc"}`, Grant{}, Error{Kind: Misconfigured, Code: "other_dc"}},
		{"general", 200, nil, `{"error":"general_error"}`, Grant{}, Error{Kind: Unavailable, Code: "general_error"}},
		{"unknown word", 200, nil, `{"error":"something_new"}`, Grant{}, Error{Kind: BadAnswer, Code: "something_new"}},
		{"code that is a secret", 200, nil, `{"error":"` + markedToken + `"}`, Grant{}, Error{Kind: BadAnswer, Code: "unrecognised"}},
		{"code that is a page", 400, nil, `{"error":"` + strings.Repeat("x", 100) + `"}`, Grant{}, Error{Kind: BadAnswer, Code: "unrecognised"}},
		{"error a number", 200, nil, `{"error":7}`, Grant{}, Error{Kind: BadAnswer, Code: "no_access_token"}},
		{"nothing in it", 200, nil, `{}`, Grant{}, Error{Kind: BadAnswer, Code: "no_access_token"}},
		{"empty", 200, nil, ``, Grant{}, Error{Kind: BadAnswer, Code: "no_access_token"}},
		{"a list", 200, nil, `["` + markedBody + `"]`, Grant{}, Error{Kind: BadAnswer, Code: "no_access_token"}},
		{"empty access token", 200, nil, `{"access_token":""}`, Grant{}, Error{Kind: BadAnswer, Code: "no_access_token"}},
		{"HTML, 200", 200, header{"Content-Type": "text/html"}, "<html>" + markedBody, Grant{}, Error{Kind: BadAnswer, Code: "no_access_token"}},
		{"HTML, 400", 400, header{"Content-Type": "text/html"}, "<html>" + markedBody, Grant{}, Error{Kind: BadAnswer}},
		{"HTML, 500", 500, header{"Content-Type": "text/html"}, "<html>" + markedBody, Grant{}, Error{Kind: Unavailable}},
		{"as a form", 200, header{"Content-Type": "application/x-www-form-urlencoded"}, "access_token=" + markedToken, Grant{}, Error{Kind: BadAnswer, Code: "no_access_token"}},
		{"endless", 200, nil, `{"access_token":"` + strings.Repeat(markedBody, 10000) + `"}`, Grant{}, Error{Kind: BadAnswer, Code: "no_access_token"}},
		{"redirect (B35)", 307, header{"Location": "/elsewhere"}, "", Grant{}, Error{Kind: BadAnswer}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			requests := 0
			base := serve(t, func(w http.ResponseWriter, r *http.Request) {
				requests++
				if r.URL.RawQuery != "" || r.URL.Path != "/oauth/v2/token" || r.Method != "POST" ||
					r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || r.Header.Get("Authorization") != "" {
					t.Errorf("request %s %s %v", r.Method, r.URL, r.Header)
				}
				r.ParseForm()
				want := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {"1000.REFRESH"}, "client_id": {"1000.CLIENT"}, "client_secret": {markedSecret}}
				if !reflect.DeepEqual(r.PostForm, want) {
					t.Errorf("form %v", r.PostForm)
				}
				for k, v := range row.header {
					w.Header().Set(k, v)
				}
				if row.header["Content-Type"] == "" {
					w.Header().Set("Content-Type", "application/json;charset=UTF-8")
				}
				w.WriteHeader(row.status)
				io.WriteString(w, row.body)
			})
			g, err := newClient(t, base).Refresh(context.Background(), "eu", secret.New("1000.REFRESH"))
			if requests != 1 {
				t.Errorf("%d requests", requests)
			}
			if row.err.Kind == "" {
				if err != nil {
					t.Fatal(err)
				}
				row.want.AccessToken = secret.New(markedToken)
				if !reflect.DeepEqual(*g, row.want) {
					t.Errorf("got %+v (%q), want %+v", g, g.RefreshToken.Reveal(), row.want)
				}
				return
			}
			var e *Error
			if !errors.As(err, &e) || g != nil {
				t.Fatalf("grant %v, err %v", g, err)
			}
			row.err.Op, row.err.Status = "refresh", row.status
			got := *e
			got.location = ""
			if got != row.err {
				t.Errorf("got %+v, want %+v", got, row.err)
			}
			var theirs *oauth2.RetrieveError
			if errors.As(err, &theirs) {
				t.Error("x/oauth2's error is within")
			}
			for _, text := range []string{err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err)} {
				if strings.Contains(text, "MARKED") || strings.Contains(text, "REFRESH") || strings.Contains(text, "evil") {
					t.Errorf("shows a secret: %s", text)
				}
			}
		})
	}
}

func TestExchange(t *testing.T) {
	t.Parallel()
	verifier := oauth2.GenerateVerifier()
	base := serve(t, func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		want := url.Values{
			"grant_type": {"authorization_code"}, "code": {"1000.code"}, "redirect_uri": {"https://worker.example/callback"},
			"code_verifier": {verifier}, "client_id": {"1000.CLIENT"}, "client_secret": {"of eu"},
		}
		if !reflect.DeepEqual(r.PostForm, want) {
			t.Errorf("form %v", r.PostForm)
		}
		fmt.Fprintf(w, `{"access_token":"a","refresh_token":"r","api_domain":"http://%s","token_type":"Bearer","expires_in":3600}`, r.Host)
	})
	c := newClient(t, base, func(c *Config) { c.ClientSecrets = map[string]secret.Text{"eu": secret.New("of eu")} })
	g, err := c.Exchange(context.Background(), "eu", "1000.code", "https://worker.example/callback", verifier)
	if err != nil {
		t.Fatal(err)
	}
	want := Grant{AccessToken: secret.New("a"), RefreshToken: secret.New("r"), APIDomain: base, ExpiresIn: time.Hour}
	if !reflect.DeepEqual(*g, want) {
		t.Errorf("got %+v", g)
	}

	// Row B38: a location that isn't known is asked nothing.
	var e *Error
	if _, err := c.Exchange(context.Background(), "xx", "1000.code", "", ""); !errors.As(err, &e) || e.Kind != Misconfigured || e.Status != 0 {
		t.Errorf("unknown location: %v", err)
	}
	if _, err := c.Refresh(context.Background(), "eu", secret.Text{}); !errors.As(err, &e) || e.Kind != DeadGrant {
		t.Errorf("no refresh token: %v", err)
	}
}

func TestAuthCodeURL(t *testing.T) {
	t.Parallel()
	c := newClient(t, "")
	for location, accounts := range map[string]string{
		"eu": "https://accounts.zoho.eu", "cn": "https://accounts.zoho.com.cn", "ca": "https://accounts.zohocloud.ca",
		"": "https://accounts.zoho.com", "xx": "https://accounts.zoho.com",
	} {
		raw := c.AuthCodeURL(location, "s t", "https://w.example/cb", "verifier", []string{"ZohoCRM.modules.ALL", "ZohoCRM.org.READ"})
		base, query, _ := strings.Cut(raw, "?")
		if base != accounts+"/oauth/v2/auth" {
			t.Errorf("%q: %s", location, raw)
		}
		got, err := url.ParseQuery(query)
		want := url.Values{
			"response_type": {"code"}, "client_id": {"1000.CLIENT"}, "scope": {"ZohoCRM.modules.ALL,ZohoCRM.org.READ"},
			"redirect_uri": {"https://w.example/cb"}, "access_type": {"offline"}, "prompt": {"consent"}, "state": {"s t"},
			"code_challenge": {oauth2.S256ChallengeFromVerifier("verifier")}, "code_challenge_method": {"S256"},
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v", location, got)
		}
	}
	if raw := newClient(t, "http://127.0.0.1:1").AuthCodeURL("eu", "s", "", "", nil); !strings.HasPrefix(raw, "http://127.0.0.1:1/oauth/v2/auth?") {
		t.Error(raw)
	}
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		status int
		body   string
		want   Kind
	}{
		{200, `{"status":"success"}`, ""},
		{400, `{"error":"invalid_token"}`, DeadGrant},
		{400, `{"status":"failure"}`, DeadGrant},
		{400, `<html>`, BadAnswer},
		{400, ``, BadAnswer},
		{400, `{"error":"Access Denied"}`, Throttled},
		{400, `{"error":"invalid_client"}`, Misconfigured},
		{200, `{"error":"invalid_client"}`, Misconfigured},
		{200, `<html>`, BadAnswer},
		{500, ``, Unavailable},
	} {
		base := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method != "POST" || r.URL.Path != "/oauth/v2/token/revoke" || r.FormValue("token") != markedToken {
				t.Errorf("%s %s", r.Method, r.URL)
			}
			w.WriteHeader(row.status)
			io.WriteString(w, row.body)
		})
		err := newClient(t, base).Revoke(context.Background(), "eu", secret.New(markedToken))
		var e *Error
		if row.want == "" && err != nil || row.want != "" && (!errors.As(err, &e) || e.Kind != row.want) {
			t.Errorf("%d %s: %v", row.status, row.body, err)
		}
		if err != nil && strings.Contains(err.Error(), "MARKED") {
			t.Errorf("shows a secret: %v", err)
		}
	}
}

// Whatever a library makes of an answer, the accounts server is asked once.
func TestExchangeIsSentOnce(t *testing.T) {
	t.Parallel()
	requests := 0
	base := serve(t, func(http.ResponseWriter, *http.Request) { requests++ })
	x := &exchange{client: newClient(t, base)}
	for n, want := range []error{nil, errSecondSend} {
		req, err := http.NewRequest(http.MethodPost, base+"/oauth/v2/token", strings.NewReader("a=b"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := x.RoundTrip(req); !errors.Is(err, want) {
			t.Errorf("sending %d: %v", n, err)
		}
	}
	if requests != 1 {
		t.Errorf("%d requests", requests)
	}
}

// No answer: not a word of secrets, one request, and the time bound held.
func TestTokenUnavailable(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		serve func(*rawConn)
		is    error
	}{
		"reset":     {func(c *rawConn) { c.reset() }, nil},
		"close":     {func(*rawConn) {}, ErrClosed},
		"silence":   {func(c *rawConn) { io.Copy(io.Discard, c) }, ErrTokenTimeout},
		"slow body": {func(c *rawConn) { c.say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"); io.Copy(io.Discard, c) }, ErrTokenTimeout},
		"nonsense":  {func(c *rawConn) { c.say(markedBody + " " + markedBody + "\r\n\r\n") }, ErrBroken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := listen(t, func(c *rawConn) {
				if _, _, err := c.request(); err == nil {
					row.serve(c)
				}
			})
			c := newClient(t, s.url, func(c *Config) { c.TokenTimeout = 1500 * time.Millisecond })
			_, err := c.Refresh(context.Background(), "eu", secret.New("1000.REFRESH"))
			var e *Error
			if !errors.As(err, &e) || e.Kind != Unavailable || e.Status != 0 || row.is != nil && !errors.Is(err, row.is) {
				t.Errorf("err %v", err)
			}
			if strings.Contains(err.Error(), "MARKED") || strings.Contains(err.Error(), "REFRESH") {
				t.Errorf("shows a secret: %v", err)
			}
			if s.requests.Load() != 1 {
				t.Errorf("%d requests", s.requests.Load())
			}
		})
	}
	gone := errors.New("lock lost")
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(gone)
	if _, err := newClient(t, "http://127.0.0.1:1").Refresh(ctx, "eu", secret.New("r")); !errors.Is(err, gone) {
		t.Errorf("cause: %v", err)
	}
}
