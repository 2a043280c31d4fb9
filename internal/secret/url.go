package secret

import (
	"net/url"
	"strings"
)

// RedactURLs leaves the scheme, the user and the host of each URL of a list, and nothing
// of what is not one: a password with a slash in it ends the host for net/url.
func RedactURLs(list string) string {
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
