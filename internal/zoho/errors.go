package zoho

import (
	"compress/flate"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// What Answer.Err and the cause of an *Error can be, besides the errors of
// package net, the cause of an ended context and what Permit returned.
var (
	// ErrCallTimeout: Config.CallTimeout is over. Its Timeout method says true.
	ErrCallTimeout error = timeout("zoho: the call took longer than the call timeout")
	// ErrTokenTimeout: Config.TokenTimeout is over, likewise.
	ErrTokenTimeout error = timeout("zoho: the accounts server took longer than the token timeout")
	// ErrTooLarge: the body is larger than Config.MaxResponse.
	ErrTooLarge = errors.New("zoho: the response body is larger than the limit")
	// ErrHeaderTooLarge: the response's header is larger than 64 KiB.
	ErrHeaderTooLarge = errors.New("zoho: the response header is larger than 64 KiB")
	// ErrBroken: the exchange broke off, or what came isn't HTTP/1.1.
	ErrBroken = errors.New("zoho: the exchange broke off or wasn't HTTP/1.1")
	// ErrClosed: Zoho closed the connection before its answer was whole.
	ErrClosed = errors.New("zoho: the connection was closed before the answer was whole")
	// ErrRequest: the call can't be sent as it is; it comes wrapped, with the reason.
	ErrRequest = errors.New("zoho: not a request that can be sent")
)

var (
	errHandshakeTimeout error = timeout("zoho: the TLS handshake took too long")
	errSecondSend             = errors.New("zoho: refused to send a call a second time")
	errHeaderName             = fmt.Errorf("%w: a header's name", ErrRequest)
	errHeaderValue            = fmt.Errorf("%w: a header's value", ErrRequest)
	errBadLocation            = errors.New("zoho: not the location and accounts server of a known data centre")
)

// timeout is an error of package net's kind for time that ran out.
type timeout string

func (t timeout) Error() string { return string(t) }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

// handshakeError marks what went wrong in a TLS handshake.
type handshakeError struct{ err error }

func (e *handshakeError) Error() string { return "zoho: TLS handshake: " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// describe turns an error of an exchange into one that may be shown. Only kinds
// known to quote nothing of what the server sent pass; the rest becomes ErrBroken.
// The end of ctx comes before all, since it is what broke the connection.
func describe(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	for _, known := range []error{errSecondSend, errScheme, errHandshakeTimeout, ErrTooLarge, ErrHeaderTooLarge, ErrRequest} {
		if errors.Is(err, known) {
			return err
		}
	}
	var (
		shake *handshakeError
		op    *net.OpError
		dns   *net.DNSError
		errno syscall.Errno
		flat  flate.CorruptInputError
	)
	switch {
	case errors.As(err, &shake):
		return shake
	case errors.As(err, &op):
		return op
	case errors.As(err, &dns):
		return dns
	case errors.As(err, &errno):
		return errno
	case errors.As(err, &flat), errors.Is(err, gzip.ErrHeader), errors.Is(err, gzip.ErrChecksum):
		return errors.New("zoho: the response body isn't valid gzip")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrClosed
	}
	return ErrBroken
}
