package zoho

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"zoho-worker/internal/secret"
)

const (
	// maxTokenAnswer bounds a body of the accounts server; a token is 1 KiB.
	maxTokenAnswer = 64 << 10
	// defaultLife is how long an access token lives where the answer doesn't
	// say, or says what can't be (zoho-facts 1.6); maxLife is what can't be.
	defaultLife = time.Hour
	maxLife     = 24 * time.Hour
)

// Grant is what the accounts server gave.
type Grant struct {
	AccessToken secret.Text
	// RefreshToken is zero where the answer had none: keep the stored one after
	// a refresh (they don't rotate); after an exchange it means that the consent
	// page was asked neither for offline access nor for consent.
	RefreshToken secret.Text
	// APIDomain is a known API host or empty: keep the previous one then. It
	// may name production for a sandbox grant, so that no call goes by it.
	APIDomain string
	// ExpiresIn is the access token's life, more than 0 and at most 24 hours.
	ExpiresIn time.Duration
	// Scopes are those granted, empty where the answer doesn't name them.
	Scopes []string
}

// Kind sorts what the accounts server can answer by what there is to do.
type Kind string

// The kinds.
const (
	// DeadGrant: the refresh token is unknown, revoked or evicted (after Refresh),
	// the code used or expired (after Exchange), the token unknown (after Revoke).
	// Only a person's consent helps.
	DeadGrant Kind = "dead_grant"
	// Throttled: too many requests. Each further one keeps the lock-out going;
	// the connection is fine.
	Throttled Kind = "throttled"
	// Misconfigured: the client, its secret or its redirect URI is wrong here.
	// The operator's to repair; the connection is fine.
	Misconfigured Kind = "misconfigured"
	// BadAnswer: an answer that makes no sense, or names a foreign API host.
	BadAnswer Kind = "bad_answer"
	// Unavailable: no answer, or a server error.
	Unavailable Kind = "unavailable"
)

// Error is what the accounts server answered, as a fact.
type Error struct {
	Kind Kind
	// Code is Zoho's error code as it came where it looks like one, else a word
	// of ours: CodeBadAPIDomain, "no_access_token", "unrecognised", or "".
	Code string
	// Status is the HTTP status, which says nothing by itself: Zoho answers
	// errors with 200. 0 where no answer came.
	Status int
	// Op is "refresh", "exchange" or "revoke".
	Op string
	// RetryAfter is the Retry-After header's, 0 where there is none.
	RetryAfter time.Duration
	// Unsent says that it is proved that no byte of the request left.
	Unsent bool

	location string
	cause    error
}

// CodeBadAPIDomain is the Code of a token response that names a foreign API
// host (row B36).
const CodeBadAPIDomain = "oauth_bad_api_domain"

// Error implements error. The text holds nothing of the answer but its code.
func (e *Error) Error() string {
	s := fmt.Sprintf("zoho: %s at %q: %s", e.Op, e.location, e.Kind)
	switch {
	case e.Code != "" && e.Status != 0:
		s += fmt.Sprintf(" (%s, status %d)", e.Code, e.Status)
	case e.Code != "":
		s += " (" + e.Code + ")"
	case e.Status != 0:
		s += fmt.Sprintf(" (status %d)", e.Status)
	}
	if e.cause != nil {
		s += ": " + e.cause.Error()
	}
	return s
}

// Unwrap returns why no answer came, nil where one did.
func (e *Error) Unwrap() error { return e.cause }

// Refresh asks for a new access token. Its errors are *Error. It is one request
// to the accounts server and counts among the ten that Zoho allows per refresh
// token in ten minutes, so the caller sees to it that only one is made.
func (c *Client) Refresh(ctx context.Context, location string, refreshToken secret.Text) (*Grant, error) {
	if refreshToken.IsZero() {
		return nil, &Error{Kind: DeadGrant, Code: "no_refresh_token", Op: "refresh", location: location}
	}
	return c.token(ctx, location, "refresh", "", func(ctx context.Context, o *oauth2.Config) (*oauth2.Token, error) {
		return o.TokenSource(ctx, &oauth2.Token{RefreshToken: refreshToken.Reveal()}).Token()
	})
}

// Exchange trades the code of a callback, with the verifier that AuthCodeURL
// was given, for a grant. Its errors are *Error. A code works once, for one to
// two minutes.
func (c *Client) Exchange(ctx context.Context, location, code, redirectURI, verifier string) (*Grant, error) {
	return c.token(ctx, location, "exchange", redirectURI, func(ctx context.Context, o *oauth2.Config) (*oauth2.Token, error) {
		var opts []oauth2.AuthCodeOption
		if verifier != "" {
			opts = append(opts, oauth2.VerifierOption(verifier))
		}
		return o.Exchange(ctx, code, opts...)
	})
}

// AuthCodeURL returns the consent page's URL: offline access and consent asked
// for, so that a refresh token comes, and PKCE S256 with verifier where it isn't
// empty. The accounts server of an unknown location is that of the United
// States, which serves all but China.
func (c *Client) AuthCodeURL(location, state, redirectURI, verifier string, scopes []string) string {
	accounts, ok := c.accountsOf(location)
	if !ok {
		accounts, _ = c.accountsOf("us")
	}
	o := c.oauth(accounts, location, redirectURI)
	o.Scopes = []string{strings.Join(scopes, ",")} // x/oauth2 joins with spaces, Zoho wants commas
	opts := []oauth2.AuthCodeOption{oauth2.AccessTypeOffline, oauth2.ApprovalForce}
	if verifier != "" {
		opts = append(opts, oauth2.S256ChallengeOption(verifier))
	}
	return o.AuthCodeURL(state, opts...)
}

// Revoke makes Zoho forget a token: a refresh token with every access token
// minted from it. Its errors are *Error; DeadGrant means that Zoho doesn't know
// the token, which is as good.
func (c *Client) Revoke(ctx context.Context, location string, token secret.Text) error {
	e := &Error{Op: "revoke", location: location}
	accounts, ok := c.accountsOf(location)
	if !ok {
		e.Kind, e.Code = Misconfigured, "unknown_location"
		return e
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.TokenTimeout, ErrTokenTimeout)
	defer cancel()
	// The documented form has the token in the query (zoho-facts 1.1).
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, accounts+"/oauth/v2/token/revoke?token="+url.QueryEscape(token.Reveal()), nil)
	if err != nil {
		e.Kind, e.Code = Misconfigured, "unknown_location"
		return e
	}
	x := &exchange{client: c}
	if _, err := x.RoundTrip(req); err != nil { //nolint:bodyclose // the exchange has read and closed it
		e.Kind, e.Unsent, e.cause = Unavailable, !x.left, err
		return e
	}
	var answer tokenFault
	parsed := json.Unmarshal(x.body, &answer) == nil
	if x.status == http.StatusOK && parsed && text(answer.Status) == "success" {
		return nil
	}
	x.judge(e)
	// Whatever its words, if they are Zoho's: a page is a proxy's, or a firewall's.
	if parsed && x.status == http.StatusBadRequest && e.Kind != Throttled && e.Kind != Misconfigured {
		e.Kind = DeadGrant
	}
	return e
}

// accountsOf returns the accounts server of a location.
func (c *Client) accountsOf(location string) (string, bool) {
	d, ok := LookupDataCenter(location)
	if c.accounts != "" {
		return c.accounts, ok
	}
	return d.Accounts, ok
}

func (c *Client) oauth(accounts, location, redirectURI string) *oauth2.Config {
	clientSecret, ok := c.config.ClientSecrets[location]
	if !ok {
		clientSecret = c.config.ClientSecret
	}
	return &oauth2.Config{
		ClientID:     c.config.ClientID,
		ClientSecret: clientSecret.Reveal(),
		RedirectURL:  redirectURI,
		Endpoint: oauth2.Endpoint{
			AuthURL:   accounts + "/oauth/v2/auth",
			TokenURL:  accounts + "/oauth/v2/token",
			AuthStyle: oauth2.AuthStyleInParams, // in the body: a JSON body or a GET is refused
		},
	}
}

// token runs one exchange with the token endpoint and turns its outcome into a
// Grant or an *Error. x/oauth2's own errors are looked at for nothing: they
// come with status 200 too, and their text can hold the body.
func (c *Client) token(ctx context.Context, location, op, redirectURI string, ask func(context.Context, *oauth2.Config) (*oauth2.Token, error)) (*Grant, error) {
	e := &Error{Op: op, location: location}
	accounts, ok := c.accountsOf(location)
	if !ok {
		e.Kind, e.Code = Misconfigured, "unknown_location"
		return nil, e
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.config.TokenTimeout, ErrTokenTimeout)
	defer cancel()
	x := &exchange{client: c}
	client := &http.Client{
		Transport:     x,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	tok, err := ask(context.WithValue(ctx, oauth2.HTTPClient, client), c.oauth(accounts, location, redirectURI))
	if err != nil {
		x.judge(e)
		return nil, e
	}
	return c.grant(tok, x, e)
}

// grant checks what came along with an access token.
func (c *Client) grant(tok *oauth2.Token, x *exchange, e *Error) (*Grant, error) {
	e.Status = x.status
	g := &Grant{AccessToken: secret.New(tok.AccessToken), ExpiresIn: life(tok)}
	// Not tok.RefreshToken, which after a refresh without one is the old one.
	if refresh, _ := tok.Extra("refresh_token").(string); refresh != "" {
		g.RefreshToken = secret.New(refresh)
	}
	switch domain := tok.Extra("api_domain").(type) {
	case nil:
	case string:
		if domain != "" && !c.knownAPIDomain(domain) {
			e.Kind, e.Code = BadAnswer, CodeBadAPIDomain
			return nil, e
		}
		g.APIDomain = domain
	default:
		e.Kind, e.Code = BadAnswer, CodeBadAPIDomain
		return nil, e
	}
	if scope, _ := tok.Extra("scope").(string); scope != "" {
		g.Scopes = strings.FieldsFunc(scope, func(r rune) bool { return r == ' ' || r == ',' })
	}
	return g, nil
}

// life returns how long an access token lives. Where there is an
// expires_in_sec, expires_in is in milliseconds (zoho-facts 1.4).
func life(tok *oauth2.Token) time.Duration {
	v := tok.Extra("expires_in_sec")
	if v == nil {
		v = tok.Extra("expires_in")
	}
	var seconds float64
	switch v := v.(type) {
	case float64:
		seconds = v
	case string:
		seconds, _ = strconv.ParseFloat(v, 64)
	}
	if !(seconds > 0 && seconds <= maxLife.Seconds()) {
		return defaultLife
	}
	return time.Duration(seconds * float64(time.Second))
}

// exchange is the transport of one exchange with the accounts server: the
// hardened one, with the answer read within bounds and kept for judgement.
type exchange struct {
	client     *Client
	status     int
	retryAfter time.Duration
	body       []byte
	left       bool // false where it is proved that nothing of the request left
	err        error
}

// RoundTrip implements http.RoundTripper.
func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	if x.status != 0 || x.err != nil {
		return nil, errSecondSend
	}
	// x/oauth2 keeps its request, and its body is in memory.
	r := req.Clone(req.Context())
	r.Header.Set("User-Agent", userAgent)
	answer, left, err := x.client.roundTripHTTP(r.Context(), r, maxTokenAnswer)
	if req.Body != nil {
		_ = req.Body.Close()
	}
	if err == nil && !errors.Is(answer.bodyErr, ErrTooLarge) {
		err = answer.bodyErr
	}
	if err != nil {
		x.left, x.err = left, err
		return nil, err
	}
	x.status, x.body = answer.status, answer.body
	x.retryAfter = retryAfter(answer.fields)
	// x/oauth2 goes by the content type, and would read JSON that came as
	// text/plain as a form.
	h := http.Header{"Content-Type": {"application/json"}}
	return &http.Response{
		StatusCode: x.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: io.NopCloser(bytes.NewReader(x.body)), ContentLength: int64(len(x.body)), Request: req,
	}, nil
}

// tokenFault is an error of the accounts server.
type tokenFault struct {
	Error       json.RawMessage `json:"error"`
	Message     json.RawMessage `json:"message"`
	Description json.RawMessage `json:"error_description"`
	Status      json.RawMessage `json:"status"`
}

// judge sorts an exchange that brought no token. A code says more than a
// status, except that nothing a failing server says may kill a grant.
func (x *exchange) judge(e *Error) {
	e.Status, e.RetryAfter = x.status, x.retryAfter
	if x.status == 0 {
		e.Kind, e.Unsent, e.cause = Unavailable, !x.left, x.err
		if e.cause == nil {
			e.cause = errors.New("zoho: no request was made")
		}
		return
	}
	var f tokenFault
	if json.Unmarshal(x.body, &f) != nil {
		f = tokenFault{}
	}
	code := text(f.Error)
	if code == "" && strings.EqualFold(text(f.Message), "Access Denied") {
		code = text(f.Message) // the form of an older page
	}
	e.Code = showable(code)
	slow := strings.Contains(strings.ToLower(text(f.Description)+text(f.Message)), "too many requests")
	kind, known := tokenCodes[strings.ToLower(code)]
	switch {
	case slow, known && kind == Throttled, x.status == http.StatusTooManyRequests:
		e.Kind = Throttled
	case x.status >= 500:
		e.Kind = Unavailable
	case known:
		e.Kind = kind
	default:
		e.Kind = BadAnswer
		if code == "" && x.status == http.StatusOK {
			e.Code = "no_access_token"
		}
	}
}

// tokenCodes are the errors of the token endpoint (zoho-facts 1.5), in lower
// case. What isn't here is a BadAnswer: no unknown word may kill a grant.
var tokenCodes = map[string]Kind{
	"invalid_code":          DeadGrant,
	"access denied":         Throttled,
	"access_denied":         Throttled, // too many grant codes
	"invalid_client":        Misconfigured,
	"invalid_client_secret": Misconfigured,
	"invalid_redirect_uri":  Misconfigured,
	"invalid_scope":         Misconfigured,
	"missing_org_info":      Misconfigured,
	"other_dc":              Misconfigured,
	"general_error":         Unavailable,
}

// showable returns code where it looks like a code: letters, few, no digit, so
// that no token or secret can pass for one.
func showable(code string) string {
	if len(code) > 40 {
		return "unrecognised"
	}
	for _, r := range code {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '_' && r != ' ' {
			return "unrecognised"
		}
	}
	return code
}
