package envelope

import (
	"net/url"
	"path"
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"/v8/Leads":                          "/crm/v8/Leads",
		"/v2.1/Leads/actions/count":          "/crm/v2.1/Leads/actions/count",
		"/bulk/v8/read":                      "/crm/bulk/v8/read",
		"/v8/Leads/p.boyle%40example.com":    "/crm/v8/Leads/p.boyle%40example.com",
		"/v8/Leads/größe":                    "/crm/v8/Leads/gr%C3%B6%C3%9Fe",
		"/v8/Leads/gr%c3%b6%c3%9fe":          "/crm/v8/Leads/gr%C3%B6%C3%9Fe",
		"/v8/%4Ceads":                        "/crm/v8/Leads",
		"/v8/Leads/$approved":                "/crm/v8/Leads/$approved",
		"/v8/Leads/a+b:c":                    "/crm/v8/Leads/a%2Bb%3Ac",
		"/v8/Leads/100%25":                   "/crm/v8/Leads/100%25",
		"/v8/Leads/%3F%23":                   "/crm/v8/Leads/%3F%23",
		"/v8/__composite_requests":           "/crm/v8/__composite_requests",
		"/v8/Leads/554023000000568002/photo": "/crm/v8/Leads/554023000000568002/photo",
	} {
		got, query, f := parseURL([]byte(raw + "?b=%7e&a@b"))
		if f != nil {
			t.Errorf("%s: %v", raw, f.message())
		} else if got != want || string(query) != "b=%7e&a@b" {
			t.Errorf("%s: %s, want %s; query %s", raw, got, want, query)
		}
	}
}

// FuzzURL holds the URL rule from the other end: whatever is accepted, what is
// built from it stays on the host and below /crm, however often it is decoded.
func FuzzURL(f *testing.F) {
	for _, seed := range []string{
		"/v8/Leads", "/bulk/v8/read?x=1", "/v8/Leads/p%40x", "/v8/größe", "/v8/100%25", "/v8/%25%32%65", "/v8/..%2f", "/v8/%2e%2e/a",
		"//evil.example", "@evil.example/v8/a", ".evil/v8/a", "/v8/a;b", "/v8/a%3Bb", "/v8/%c0%ae", "/v8/a?authtoken=1", "/v8/%5c..",
		"/v8/a?b=%41&c@d/../e?f",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, query, fault := parseURL([]byte(raw))
		if fault != nil {
			return
		}
		whole := "https://www.zohoapis.eu" + got
		if len(query) > 0 {
			whole += "?" + string(query)
		}
		u, err := url.Parse(whole)
		if err != nil {
			t.Fatalf("%q: %v", whole, err)
		}
		if u.Host != "www.zohoapis.eu" || u.User != nil || u.Fragment != "" || u.Opaque != "" || u.RawQuery != string(query) {
			t.Errorf("%q became %#v", raw, u)
		}
		if u.EscapedPath() != got {
			t.Errorf("%q is sent as %q", got, u.EscapedPath())
		}
		for p := got; ; {
			if path.Clean(p) != p || strings.ContainsAny(p, "\\;") || hasControl([]byte(p)) ||
				!strings.HasPrefix(p, "/crm/v") && !strings.HasPrefix(p, "/crm/bulk/v") {
				t.Errorf("%q decodes to %q", raw, p)
			}
			next, err := url.PathUnescape(p)
			if err != nil || next == p {
				break
			}
			p = next
		}
		if _, err := url.ParseQuery(string(query)); err != nil {
			t.Errorf("query %q: %v", query, err)
		}
		for key := range u.Query() {
			if isCredential([]byte(key)) {
				t.Errorf("query %q has %s", query, key)
			}
		}
		if again, _, fault := parseURL([]byte(strings.TrimPrefix(got, apiRoot))); fault != nil || again != got {
			t.Errorf("%q becomes %q, and that %q", raw, got, again)
		}
	})
}
