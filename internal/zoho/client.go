// Package zoho speaks to Zoho over HTTP: the data centres and their hosts, one
// call of the CRM API (Client.Do), the OAuth endpoints, and a table that says
// of every operation whether it may be repeated.
//
// It reports facts and judges nothing: whether an answer is final, is waited
// out or repeated is package relay's to say. It keeps no tokens, counts no
// limits, and never repeats a call by itself.
//
// Invariants:
//   - A call leaves at most once. Nothing here begins a request again: it is
//     written over one connection, by one function, which has no way back. (Go's
//     net/http repeats what it takes for repeatable by itself.)
//   - Answer.Unsent is true only where it is proved that no byte of the request
//     left this process. Every doubt makes it false.
//   - A path goes out byte for byte, to the host of the connection's own data
//     centre; no redirect is followed, no cookie kept, no proxy asked.
//   - No address that isn't public is ever dialled, whatever a name resolves to,
//     except the host that Config names itself.
//   - Memory is bounded: response headers to 64 KiB, bodies to
//     Config.MaxResponse after decompression; time to Config.CallTimeout.
//   - No token, secret or byte of a response is in the text of any error.
package zoho

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"zoho-worker/internal/secret"
)

// The defaults of Config.
const (
	DefaultCallTimeout    = time.Minute
	DefaultTokenTimeout   = 10 * time.Second
	DefaultMaxResponse    = 16 << 20
	DefaultMaxIdlePerHost = 64
)

const (
	// maxResponseHeader bounds the bytes of a response's header. Zoho's are
	// around 1 KiB; a server that sends more than this is none.
	maxResponseHeader = 64 << 10
	// idleTimeout is how long an unused connection is kept. A longer one saves
	// handshakes; a shorter one makes it rarer that Zoho closes a connection in
	// the very moment an insert is written to it, which leaves an unknown outcome.
	idleTimeout = 30 * time.Second
	// bufferSize is the size of a connection's read buffer: most answers to a
	// single record are one system call. Longer bodies are read past it.
	bufferSize = 4 << 10
)

// Config says how to reach Zoho and as whom.
type Config struct {
	// ClientID and ClientSecret are those of the app in Zoho's API console.
	ClientID     string
	ClientSecret secret.Text
	// ClientSecrets holds the secrets of single data centres by location, for
	// an app whose secret isn't the same in all of them (zoho-facts 1.8). A
	// centre that isn't in it uses ClientSecret.
	ClientSecrets map[string]secret.Text

	// AccountsURL and APIURL replace the accounts server and the API hosts of
	// every data centre: for a simulator or a proxy. A scheme and a host; plain
	// http only for loopback addresses. They, and only they, may be at an
	// address that isn't public. Empty: Zoho's own.
	AccountsURL, APIURL string
	// RootCAs are the certificate authorities to trust. Nil: the system's.
	RootCAs *x509.CertPool

	// CallTimeout bounds the whole exchange of one call: waiting for a
	// connection, sending, and the last byte of the body. Too little turns slow
	// inserts into unknown outcomes; too much keeps an org's place occupied by a
	// dead call. Default one minute.
	CallTimeout time.Duration
	// TokenTimeout bounds one exchange with the accounts server, likewise. It
	// must be shorter than the claim on a refresh. Default ten seconds.
	TokenTimeout time.Duration
	// MaxResponse bounds a response body, in bytes after decompression. Times
	// the calls in flight it is what bodies may take of memory; what is larger
	// isn't delivered at all. Default 16 MiB.
	MaxResponse int
	// MaxIdlePerHost is how many unused connections are kept for each host. Too
	// few cost a TLS handshake per call (kept ones were measured to be worth
	// five times the speed); each holds a buffer of 4 KiB and its TLS state.
	// Default 64.
	MaxIdlePerHost int
}

// Validate reports everything that is wrong with c at once.
func (c Config) Validate() error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf("zoho: "+format, args...)) }
	if c.ClientID == "" {
		fault("client id: is missing")
	}
	if c.ClientSecret.IsZero() && len(c.ClientSecrets) == 0 {
		fault("client secret: is missing")
	}
	for _, location := range sortedKeys(c.ClientSecrets) {
		if _, ok := LookupDataCenter(location); !ok {
			fault("client secrets: unknown data centre %q", location)
		}
		if c.ClientSecrets[location].IsZero() {
			fault("client secrets: the one of data centre %q is empty", location)
		}
	}
	if err := CheckOverride(c.AccountsURL); err != nil {
		fault("accounts URL: %w", err)
	}
	if err := CheckOverride(c.APIURL); err != nil {
		fault("API URL: %w", err)
	}
	if c.CallTimeout < 0 || c.CallTimeout > time.Hour {
		fault("call timeout: %v is not between 0 and 1h", c.CallTimeout)
	}
	if c.TokenTimeout < 0 || c.TokenTimeout > time.Minute {
		fault("token timeout: %v is not between 0 and 1m", c.TokenTimeout)
	}
	if c.MaxResponse < 0 || c.MaxResponse > 1<<30 {
		fault("max response: %d is not between 0 and %d bytes", c.MaxResponse, 1<<30)
	}
	if c.MaxIdlePerHost < 0 {
		fault("max idle per host: %d is negative", c.MaxIdlePerHost)
	}
	return errors.Join(faults...)
}

func sortedKeys(m map[string]secret.Text) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// CheckOverride checks a URL that replaces Zoho's hosts, or is empty. Its errors hold no
// part of the URL, which may carry a password.
func CheckOverride(raw string) error {
	if raw == "" {
		return nil
	}
	u, err := url.Parse(raw)
	if err != nil {
		return errors.New("is not a URL")
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("must begin with https:// (or http:// for a loopback address)")
	case u.Hostname() == "" || u.Opaque != "":
		return errors.New("has no host")
	case u.User != nil:
		return errors.New("must not carry a user")
	case u.Path != "" && u.Path != "/" || strings.ContainsAny(raw, "?#"):
		return errors.New("must be a scheme and a host only")
	case u.Scheme == "http" && !loopbackHost(u.Hostname()):
		return errors.New("plain http is for loopback addresses only")
	}
	return nil
}

func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}

// place is where the calls of one data centre and environment go.
type place struct{ scheme, host string }

type placeKey struct {
	location    string
	environment Environment
}

// Client speaks to Zoho for all connections. It is safe for concurrent use.
type Client struct {
	config     Config
	accounts   string // Config.AccountsURL without a slash at its end, or ""
	api        string // Config.APIURL likewise
	places     map[placeKey]place
	dial       *dialer
	pool       pool
	interrupts interrupts
}

// New returns a client, or all that is wrong with config.
func New(config Config) (*Client, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.CallTimeout = cmp.Or(config.CallTimeout, DefaultCallTimeout)
	config.TokenTimeout = cmp.Or(config.TokenTimeout, DefaultTokenTimeout)
	config.MaxResponse = cmp.Or(config.MaxResponse, DefaultMaxResponse)
	config.MaxIdlePerHost = cmp.Or(config.MaxIdlePerHost, DefaultMaxIdlePerHost)
	c := &Client{
		config:   config,
		accounts: strings.TrimSuffix(config.AccountsURL, "/"),
		api:      strings.TrimSuffix(config.APIURL, "/"),
		places:   make(map[placeKey]place),
	}
	for _, d := range dataCenters {
		for _, e := range []Environment{Production, Sandbox, Developer} {
			host, err := d.Host(e)
			if c.api != "" {
				host, err = c.api, nil
			}
			if err != nil {
				continue
			}
			u, err := url.Parse(host)
			if err != nil {
				return nil, fmt.Errorf("zoho: API host of %s: %w", d.Location, err)
			}
			c.places[placeKey{d.Location, e}] = place{u.Scheme, u.Host}
		}
	}
	c.dial, c.pool.most = newDialer(config.RootCAs, c.accounts, c.api), config.MaxIdlePerHost
	return c, nil
}

// Close closes the connections that aren't in use; those in use close when
// their call has ended. The client can still be used, and closed twice.
func (c *Client) Close() { c.pool.close() }
