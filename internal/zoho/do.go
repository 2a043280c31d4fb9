package zoho

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/secret"
)

// Call is one attempt to call the CRM API.
type Call struct {
	// Location and Environment choose the host.
	Location    string
	Environment Environment
	// Token is the access token.
	Token secret.Text
	// Method, Path and RawQuery go out byte for byte. Path is escaped and
	// begins with /crm/.
	Method, Path, RawQuery string
	// Headers go out in the caller's spelling. Those that are the transport's
	// or ours to set (Authorization, Host, Content-Length, Idempotency-Key …)
	// stop the call; Accept-Encoding is replaced, as the body is delivered
	// decompressed.
	Headers []envelope.Header
	// ContentType is the type of Body where Headers give none. Empty: none.
	ContentType string
	Body        []byte
	// Once says that the call isn't repeatable: it leaves on one connection or
	// not at all.
	Once bool
	// Permit is asked right before the first byte of a call with Once set is
	// handed to the connection, at most once and from a goroutine of its own.
	// An error stops the call unsent and becomes Answer.Err. Do doesn't return
	// while Permit runs, so it should mind the call's context. Nil: permitted.
	Permit func() error
}

// Answer holds the facts of one attempt.
type Answer struct {
	// Status is Zoho's, or 0 where no complete response header came.
	Status int
	// Headers are the response's, repeated ones repeated and sorted by name,
	// without Set-Cookie, the hop-by-hop ones and what describes the body's
	// length and compression on the wire.
	Headers []envelope.Header
	// Body is decompressed, whole, and the caller's to keep; nil where it isn't
	// whole (BodyError, TooLarge).
	Body []byte
	// BodyError says why the body isn't whole although the status is known:
	// Zoho has carried out the call or refused it, as Status says.
	BodyError error
	// TooLarge says that the body is larger than Config.MaxResponse.
	TooLarge bool
	// Unsent says that it is proved that no byte of the request left: no
	// connection was had, Permit refused, or the kernel took nothing. False in
	// all cases of doubt and wherever Status is known.
	Unsent bool
	// Err says why there is no (whole) answer; nil where there is one. It holds
	// nothing of what Zoho sent.
	Err error
	// Code is Zoho's error code out of the body: at the top, or of the one
	// element of its data array. Empty: none, or the body is no error.
	Code string
	// RetryAfter is when to come back, by the header or by details.retry_after
	// in the body, capped at 24 hours; 0 where Zoho doesn't say.
	RetryAfter time.Duration
	// CreditsRemaining is the X-API-CREDITS-REMAINING header, which Zoho sends
	// once half of the org's credits are used; -1 where there is none.
	CreditsRemaining int
	// Started is when the call began, Took how long it lasted, to the last byte
	// of the body.
	Started time.Time
	Took    time.Duration
}

// userAgent is what the worker calls itself where the caller says nothing.
const userAgent = "zoho-worker"

// staleTries is how often a call picks another connection where the kept one
// it got turned out to be closed before any byte was written.
const staleTries = 3

// Do makes one attempt and returns its facts. It returns no error: that no
// answer came is a fact too. It ends with ctx, and after Config.CallTimeout at
// the latest.
func (c *Client) Do(ctx context.Context, call *Call) *Answer {
	a := &Answer{CreditsRemaining: -1, Started: time.Now()}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(c.config.CallTimeout, func() { cancel(ErrCallTimeout) })
	defer func() {
		timer.Stop()
		cancel(nil)
		a.Took = time.Since(a.Started)
	}()

	header, err := callHeader(call)
	if err == nil {
		err = checkTarget(call)
	}
	where, ok := c.places[placeKey{call.Location, call.Environment}]
	if err == nil && !ok {
		err = fmt.Errorf("%w: no known API host of environment %q in data centre %q", ErrRequest, call.Environment, call.Location)
	}
	if err != nil {
		a.Unsent, a.Err = true, err
		return a
	}
	// Opaque is the one part of a URL that net/http writes as it is.
	target := &url.URL{Scheme: where.scheme, Host: where.host, Opaque: call.Path, RawQuery: call.RawQuery}
	g := &gate{ctx: ctx, cancel: cancel, once: call.Once, permit: call.Permit}
	resp, err := c.send(g, func() *http.Request {
		r := &http.Request{Method: call.Method, URL: target, Host: where.host, Header: header}
		if len(call.Body) > 0 {
			// GetBody stays nil, so that net/http can't begin the body again.
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(call.Body)), int64(len(call.Body))
		}
		return r
	})
	if err != nil {
		a.Unsent, a.Err = !g.left(), err
		return a
	}
	defer func() { _ = resp.Body.Close() }()
	a.Status = resp.StatusCode
	a.Body, err = readBody(resp, c.config.MaxResponse)
	switch {
	case errors.Is(err, ErrTooLarge):
		a.TooLarge, a.Err = true, ErrTooLarge
	case err != nil:
		a.BodyError = describe(ctx, err)
		a.Err = a.BodyError
	}
	a.read(resp)
	return a
}

// send makes the round trip of one call through g. Its errors may be shown.
// What net/http doesn't do for a request with a body, since it can't begin the
// body again, is done here: where a kept connection turned out to be closed
// before the call's first byte, the next one is tried.
func (c *Client) send(g *gate, build func() *http.Request) (*http.Response, error) {
	var reused bool
	ctx := httptrace.WithClientTrace(g.ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		reused = info.Reused
		g.attach(info.Conn)
	}})
	for try := 1; ; try++ {
		reused = false
		resp, err := c.transport.RoundTrip(build().WithContext(ctx))
		if err == nil {
			return resp, nil
		}
		if reused && try < staleTries && g.untouched() {
			continue
		}
		if refusal := g.shut(); refusal != nil {
			return nil, refusal
		}
		if strings.HasPrefix(err.Error(), "net/http: invalid ") {
			// About the request, before any connection; it quotes names only.
			err = fmt.Errorf("%w: %s", ErrRequest, strings.TrimPrefix(err.Error(), "net/http: "))
		}
		return nil, describe(g.ctx, err)
	}
}

// reserved are the headers that a call must not set: ours, the transport's, and
// the two that make net/http repeat a POST by itself. Package envelope refuses
// them already; here it is what keeps the promises of this package.
var reserved = []string{
	"Authorization", "Proxy-Authorization", "Cookie", "Host", "Content-Length", "Transfer-Encoding",
	"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Upgrade", "Expect",
	"Idempotency-Key", "X-Idempotency-Key",
}

// Values that every call shares; net/http only reads them.
var (
	acceptGzip  = []string{"gzip"}
	acceptPlain = []string{"identity"}
	agent       = []string{userAgent}
)

// callHeader builds the header of a call.
func callHeader(call *Call) (http.Header, error) {
	h := make(http.Header, len(call.Headers)+4)
	encoding := acceptGzip
	for i := range call.Headers {
		name, value := call.Headers[i].Name, call.Headers[i].Value
		for _, r := range reserved {
			if strings.EqualFold(name, r) {
				return nil, fmt.Errorf("%w: header %s is reserved", ErrRequest, r)
			}
		}
		switch {
		case strings.EqualFold(name, "Accept-Encoding"):
			continue
		case strings.EqualFold(name, "User-Agent"):
			name = "User-Agent" // the spelling by which net/http looks for it
		case strings.EqualFold(name, "Content-Type"):
			name = "Content-Type"
		case strings.EqualFold(name, "Range"):
			encoding = acceptPlain // a part of a compressed body can't be undone
		}
		h[name] = append(h[name], value)
	}
	if h["User-Agent"] == nil {
		h["User-Agent"] = agent
	}
	if h["Content-Type"] == nil && call.ContentType != "" {
		h["Content-Type"] = []string{call.ContentType}
	}
	h["Accept-Encoding"] = encoding
	h["Authorization"] = []string{"Zoho-oauthtoken " + call.Token.Reveal()}
	return h, nil
}

// checkTarget refuses what would end the request line early or leave /crm.
// Package envelope makes no such target; net/http would let a space through.
func checkTarget(call *Call) error {
	if !strings.HasPrefix(call.Path, "/crm/") || strings.ContainsAny(call.Path, "?#") || strings.Contains(call.RawQuery, "#") {
		return fmt.Errorf("%w: path must begin with /crm/ and hold no query or fragment", ErrRequest)
	}
	for _, s := range []string{call.Path, call.RawQuery} {
		for i := range len(s) {
			if s[i] <= ' ' || s[i] >= 0x7f {
				return fmt.Errorf("%w: the target holds a byte that isn't printable ASCII", ErrRequest)
			}
		}
	}
	if call.Token.IsZero() {
		return fmt.Errorf("%w: no access token", ErrRequest)
	}
	return nil
}
