package zoho

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

func TestDataCenters(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, d := range DataCenters() {
		got, ok := LookupDataCenter(d.Location)
		if by, okBy := dataCenterByAccounts(d.Accounts); !ok || !okBy || got != d || by != d {
			t.Errorf("%s isn't found again", d.Location)
		}
		if d.Accounts == "" || d.API == "" {
			t.Errorf("%s lacks a host", d.Location)
		}
		for _, raw := range []string{d.Accounts, d.API, d.Sandbox, d.Developer} {
			if raw == "" {
				continue
			}
			if u, err := url.Parse(raw); err != nil || u.Scheme != "https" || u.String() != "https://"+u.Host || u.Port() != "" || seen[raw] {
				t.Errorf("%s: %q", d.Location, raw)
			}
			seen[raw] = true
		}
		if !strings.HasPrefix(d.API, "https://www.") {
			t.Errorf("%s: knownAPIDomain takes www for given", d.Location)
		}
	}
	DataCenters()[0].Accounts = "https://evil.example"
	if d, _ := LookupDataCenter("us"); d.Accounts != "https://accounts.zoho.com" {
		t.Error("the table can be changed from outside")
	}
	ca, _ := LookupDataCenter("ca")
	if h, err := ca.Host(Sandbox); err != nil || h != "https://sandbox.zohoapis.ca" {
		t.Error(h, err)
	}
	uk, _ := LookupDataCenter("uk")
	if h, err := uk.Host(Production); err != nil || h != "https://www.zohoapis.uk" {
		t.Error(h, err)
	}
	for _, e := range []Environment{Sandbox, Developer, "", "Production"} {
		if h, err := uk.Host(e); err == nil || h != "" {
			t.Errorf("uk %q: %q", e, h)
		}
	}
}

// The simulator has the same data centres, in words of its own.
func TestDataCentersOfSimulator(t *testing.T) {
	t.Parallel()
	sim := zohotest.New(zohotest.Options{})
	t.Cleanup(sim.Close)
	sim.AddOrg(zohotest.Org{ID: "1"})
	say := func(r *http.Request, answer any) {
		w := httptest.NewRecorder()
		sim.ServeHTTP(w, r)
		if err := json.Unmarshal(w.Body.Bytes(), answer); err != nil {
			t.Fatal(err, w.Body)
		}
	}
	var info struct{ Locations map[string]string }
	say(httptest.NewRequest("GET", "/oauth/serverinfo", nil), &info)
	for _, d := range DataCenters() {
		sim.AddUser(zohotest.User{ID: d.Location, OrgID: "1", Location: d.Location})
		form := url.Values{"grant_type": {"refresh_token"}, "client_id": {"c"}, "client_secret": {"s"}, "refresh_token": {sim.GrantRefreshToken(d.Location)}}
		var token struct {
			APIDomain string `json:"api_domain"`
		}
		say(httptest.NewRequest("POST", "/oauth/v2/token?"+form.Encode(), nil), &token)
		if info.Locations[d.Location] != d.Accounts || token.APIDomain != d.API {
			t.Errorf("%s: %q and %q", d.Location, info.Locations[d.Location], token.APIDomain)
		}
	}
	if len(info.Locations) != len(DataCenters()) {
		t.Errorf("it has %v", info.Locations)
	}
}

// Rows B37 and B38.
func TestCheckCallback(t *testing.T) {
	t.Parallel()
	c := newClient(t, "")
	override := newClient(t, "http://127.0.0.1:8081/")
	for _, row := range []struct {
		client             *Client
		location, accounts string
		want               string
	}{
		{c, "eu", "https://accounts.zoho.eu", "eu"},
		{c, "", "https://accounts.zohocloud.ca", "ca"},
		{override, "eu", "https://accounts.zoho.eu", "eu"},
		{override, "eu", "http://127.0.0.1:8081", "eu"},
		{override, "xx", "http://127.0.0.1:8081", ""},
		{override, "", "http://127.0.0.1:8081", ""},
		{override, "eu", "http://127.0.0.1:8082", ""},
		{c, "eu", "http://127.0.0.1:8081", ""},
		{c, "eu", "", ""},
		{c, "", "", ""},
		{c, "eu", "https://accounts.zoho.com", ""},
		{c, "xx", "https://accounts.zoho.eu", ""},
		{c, "EU", "https://accounts.zoho.eu", ""},
		{c, "eu", "https://evil.example", ""},
		{c, "eu", "http://accounts.zoho.eu", ""},
		{c, "eu", "https://accounts.zoho.eu:443", ""},
		{c, "eu", "https://accounts.zoho.eu/", ""},
		{c, "eu", "https://accounts.zoho.eu/x", ""},
		{c, "eu", "https://accounts.zoho.eu?x", ""},
		{c, "eu", "https://accounts.zoho.eu@evil.example", ""},
		{c, "eu", "https://a@accounts.zoho.eu", ""},
		{c, "eu", "https://ACCOUNTS.zoho.eu", ""},
		{c, "eu", "https://accounts.zoho.eu.evil.example", ""},
		{c, "eu", " https://accounts.zoho.eu", ""},
	} {
		d, err := row.client.CheckCallback(row.location, row.accounts)
		if d.Location != row.want || (err == nil) != (row.want != "") || err != nil && strings.Contains(err.Error(), "evil") {
			t.Errorf("%q %q: %+v, %v", row.location, row.accounts, d, err)
		}
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	good := Config{ClientID: "id", ClientSecret: secret.New("s")}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	err := Config{
		ClientSecrets: map[string]secret.Text{"xx": secret.New(markedSecret), "eu": {}},
		AccountsURL:   "http://user:" + markedSecret + "@accounts.example", APIURL: "ftp://x",
		CallTimeout: -1, TokenTimeout: time.Hour, MaxResponse: -1, MaxIdlePerHost: -1,
	}.Validate()
	for _, want := range []string{"client id", `"xx"`, `"eu" is empty`, "accounts URL", "API URL", "call timeout", "token timeout", "max response", "max idle"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if strings.Contains(err.Error(), markedSecret) {
		t.Errorf("shows a secret: %v", err)
	}
	if c, err := New(Config{}); err == nil || c != nil || !strings.Contains(err.Error(), "client secret: is missing") {
		t.Errorf("New: %v", err)
	}
	for raw, ok := range map[string]bool{
		"": true, "https://proxy.example": true, "https://10.0.0.1:8443/": true, "http://127.0.0.1:1": true, "http://localhost:1": true, "http://[::1]:1": true,
		"http://proxy.example": false, "http://10.0.0.1": false, "http://localhost.evil.example": false, "http://127.0.0.1.evil.example": false,
		"https://": false, "https://x/path": false, "https://x?q": false, "https://x#f": false, "https://x?": false, "//x": false, "x": false,
		"https://a@x": false, "HTTPS://%zz": false, "https:x": false, "http://0.0.0.0:1": false,
	} {
		if err := CheckOverride(raw); (err == nil) != ok {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	for want, e := range map[string]*Error{
		`zoho: refresh at "eu": throttled (Access Denied, status 400)`: {Kind: Throttled, Code: "Access Denied", Status: 400, Op: "refresh", location: "eu"},
		`zoho: refresh at "eu": bad_answer (status 502)`:               {Kind: BadAnswer, Status: 502, Op: "refresh", location: "eu"},
		`zoho: revoke at "eu": misconfigured (unknown_location)`:       {Kind: Misconfigured, Code: "unknown_location", Op: "revoke", location: "eu"},
		`zoho: refresh at "eu": unavailable: gone`:                     {Kind: Unavailable, Op: "refresh", location: "eu", cause: errors.New("gone")},
	} {
		if e.Error() != want {
			t.Errorf("got %s, want %s", e, want)
		}
	}
}
