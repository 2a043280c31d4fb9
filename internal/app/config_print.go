package app

import (
	"net/url"

	"zoho-worker/internal/secret"
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
			e.Value = secret.RedactURLs(e.Value)
		case s.Name == "webhook-url": // many have their secret in the path
			if u, err := url.Parse(e.Value); err == nil && u.Host != "" {
				e.Value = u.Scheme + "://" + u.Host + "/redacted"
			} else {
				e.Value = "redacted"
			}
		case e.Secret:
			e.Value = "redacted"
		}
		all = append(all, e)
	}
	return all
}
