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
			e.Value = "redacted"
		}
		all = append(all, e)
	}
	return all
}

// redactURLs leaves the scheme, the user and the host of each URL.
func redactURLs(list string) string {
	var shown []string
	for _, raw := range strings.Split(list, ",") {
		u, err := url.Parse(raw)
		switch {
		case err != nil:
			shown = append(shown, "redacted")
		case u.Host == "" && u.Scheme == "": // host:port or a token
			shown = append(shown, redactHost(raw))
		default:
			if _, has := u.User.Password(); !has && u.User != nil {
				u.User = url.User("redacted") // a token
			}
			if u.RawQuery != "" {
				u.RawQuery = "redacted"
			}
			shown = append(shown, u.Redacted())
		}
	}
	return strings.Join(shown, ",")
}

func redactHost(raw string) string {
	if _, host, ok := strings.Cut(raw, "@"); ok {
		return "redacted@" + host
	}
	return raw
}
