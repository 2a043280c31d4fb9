package zoho

import (
	"context"
	"errors"
	"fmt"
	"net/textproto"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

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
	// Timeout bounds this call, where Config.CallTimeout doesn't already. 0: no
	// other bound. It costs less than a context of its own.
	Timeout time.Duration
	// Permit is asked right before the first byte of a call that isn't repeatable is
	// handed to the connection, at most once. An error stops the call unsent and
	// becomes Answer.Err. It should mind the call's context. Nil: permitted.
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
	// Body is decompressed, whole, and the caller's until Release; nil where it
	// isn't whole (BodyError, TooLarge).
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
	// Code is Zoho's error code out of the body: at the top, or of all elements
	// of its data array. Empty: none, or the body is no error.
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

	memory *[]byte // of Body
}

// Release gives the memory of Body back, for other answers: nothing may read it
// any more. Without it, the memory is the caller's to keep.
func (a *Answer) Release() {
	free(a.memory)
	a.Body, a.memory = nil, nil
}

// userAgent is what the worker calls itself where the caller says nothing.
const userAgent = "zoho-worker"

// Do makes one attempt and returns its facts. It returns no error: that no
// answer came is a fact too. It ends with ctx, and after Config.CallTimeout at
// the latest.
func (c *Client) Do(ctx context.Context, call *Call) *Answer {
	a := &Answer{CreditsRemaining: -1, Started: time.Now()}
	defer func() { a.Took = time.Since(a.Started) }()
	timeout := c.config.CallTimeout
	if call.Timeout > 0 {
		timeout = min(timeout, call.Timeout)
	}
	where, ok := c.places[placeKey{call.Location, call.Environment}]
	err := checkTarget(call)
	if err == nil && !ok {
		err = fmt.Errorf("%w: no known API host of environment %q in data centre %q", ErrRequest, call.Environment, call.Location)
	}
	head := heads.Get().(*[]byte)
	defer heads.Put(head)
	if err == nil {
		*head, err = appendHead((*head)[:0], call, where.host)
	}
	if err != nil {
		a.Unsent, a.Err = true, err
		return a
	}
	t := trip{where: where, head: *head, body: call.Body, until: a.Started.Add(timeout), permit: call.Permit, limit: c.config.MaxResponse}
	r, err := c.roundTrip(ctx, &t)
	if err != nil {
		a.Unsent, a.Err = !t.left, err
		return a
	}
	a.Status, a.Body, a.memory = r.status, r.body, r.memory
	switch {
	case errors.Is(r.bodyErr, ErrTooLarge):
		a.TooLarge, a.Err = true, ErrTooLarge
	case r.bodyErr != nil:
		a.BodyError, a.Err = r.bodyErr, r.bodyErr
	}
	a.read(r.fields)
	return a
}

// heads hold the heads of requests that are on their way.
var heads = sync.Pool{New: func() any {
	b := make([]byte, 0, 1<<10)
	return &b
}}

// reserved returns the usual spelling of a header that a call must not set: ours,
// the transport's, and the two by which other clients take a POST for repeatable.
// Package envelope refuses them already; here it is what keeps the promises of
// this package.
func reserved(name string) string {
	var room [24]byte
	if len(name) > len(room) {
		return ""
	}
	lower := room[:len(name)]
	for i := range len(name) {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		lower[i] = c
	}
	switch string(lower) {
	case "authorization", "proxy-authorization", "cookie", "host", "content-length", "transfer-encoding",
		"connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "expect",
		"idempotency-key", "x-idempotency-key":
		return textproto.CanonicalMIMEHeaderKey(name)
	}
	return ""
}

// appendHead appends the request line and the headers of a call.
func appendHead(dst []byte, call *Call, host string) ([]byte, error) {
	dst = append(dst, call.Method...)
	dst = append(dst, ' ')
	dst = append(dst, call.Path...)
	if call.RawQuery != "" {
		dst = append(dst, '?')
		dst = append(dst, call.RawQuery...)
	}
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, host...)
	dst = append(dst, "\r\n"...)
	var err error
	line := func(name string, value ...string) {
		if err == nil {
			dst, err = appendLine(dst, name, value...)
		}
	}
	line("Authorization", "Zoho-oauthtoken ", call.Token.Reveal())
	encoding, agent, typed := "gzip", false, false
	for i := range call.Headers {
		name := call.Headers[i].Name
		if r := reserved(name); r != "" {
			return nil, fmt.Errorf("%w: header %s is reserved", ErrRequest, r)
		}
		switch {
		case strings.EqualFold(name, "Accept-Encoding"):
			continue
		case strings.EqualFold(name, "User-Agent"):
			agent = true
		case strings.EqualFold(name, "Content-Type"):
			typed = true
		case strings.EqualFold(name, "Range"):
			encoding = "identity" // a part of a compressed body can't be undone
		}
		line(name, call.Headers[i].Value)
	}
	line("Accept-Encoding", encoding)
	if !agent {
		line("User-Agent", userAgent)
	}
	if !typed && call.ContentType != "" {
		line("Content-Type", call.ContentType)
	}
	if err != nil {
		return nil, err
	}
	return appendLength(dst, call.Method, len(call.Body)), nil
}

// checkTarget refuses what would end the request line early or leave /crm.
// Package envelope makes no such target.
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
	if !httpguts.ValidHeaderFieldName(call.Method) {
		return fmt.Errorf("%w: not a method", ErrRequest)
	}
	if call.Token.IsZero() {
		return fmt.Errorf("%w: no access token", ErrRequest)
	}
	return nil
}
