package zoho

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// Reach asks the accounts server of a data centre and its API host of an
// environment for a page that needs no token, to see that their names resolve,
// that TCP and TLS come about, and that somebody speaks HTTP there; what the
// answers say doesn't matter. It returns the URLs it asked, and an error for
// each, nil where an answer came.
func (c *Client) Reach(ctx context.Context, location string, e Environment) (urls []string, faults []error) {
	accounts, ok := c.accountsOf(location)
	if ok {
		accounts += "/oauth/serverinfo"
		urls, faults = append(urls, accounts), append(faults, c.reach(ctx, accounts))
	} else {
		urls, faults = append(urls, location), append(faults, fmt.Errorf("zoho: unknown data centre %q", location))
	}
	where, ok := c.places[placeKey{location, e}]
	if !ok {
		return append(urls, location), append(faults, fmt.Errorf("zoho: no known API host of environment %q in data centre %q", e, location))
	}
	api := where.scheme + "://" + where.host + "/crm/v8/org"
	return append(urls, api), append(faults, c.reach(ctx, api))
}

func (c *Client) reach(ctx context.Context, rawURL string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.TokenTimeout, ErrTokenTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", userAgent)
	answer, _, err := c.roundTripHTTP(ctx, req, 64<<10)
	if err != nil || errors.Is(answer.bodyErr, ErrTooLarge) {
		return err
	}
	return answer.bodyErr
}
