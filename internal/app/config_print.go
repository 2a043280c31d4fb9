package app

import (
	"net/url"
	"strings"
)

// Effective is a setting's value and where it came from.
type Effective struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Origin string `json:"origin"`
	Secret bool   `json:"secret,omitempty"`
}

// Effective returns all settings as they are, secrets redacted: of an address
// its host stays, of anything else nothing.
func (c Config) Effective() []Effective {
	var all []Effective
	for _, s := range c.settings() {
		e := Effective{Name: s.Name, Value: s.raw(), Origin: c.Origin(s.Name), Secret: s.secret != nil}
		switch {
		case e.Value == "":
		case s.Name == "redis-url" || s.Name == "nats-url":
			e.Value = redactURLs(e.Value)
		case e.Secret:
			e.Value = redacted
		}
		all = append(all, e)
	}
	return all
}

// redactURLs leaves the scheme, the user and the host of each URL, and nothing of
// what is not one: a password with a slash in it ends the host for net/url.
func redactURLs(list string) string {
	var shown []string
	for _, raw := range strings.Split(list, ",") {
		whole := strings.TrimSpace(raw)
		if !strings.Contains(whole, "://") { // which NATS takes, too
			whole = "//" + whole
		}
		u, err := url.Parse(whole)
		if err != nil || strings.Contains(u.Path+u.RawQuery+u.Fragment, "@") {
			shown = append(shown, redacted)
			continue
		}
		if _, has := u.User.Password(); !has && u.User != nil {
			u.User = url.User(redacted) // a token
		}
		if u.RawQuery != "" {
			u.RawQuery = redacted
		}
		u.Fragment = ""
		shown = append(shown, strings.TrimPrefix(u.Redacted(), "//"))
	}
	return strings.Join(shown, ",")
}

const redacted = "redacted"
