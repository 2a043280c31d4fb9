package envelope

import (
	"bytes"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// headersField reads the field headers of a request.
func headersField(s *scanner) []Header {
	if s.peek() != '{' {
		s.refuse(inSchema, "must be an object")
		return nil
	}
	var headers []Header
	total := 0
	for n := 0; ; n++ {
		raw, ok := s.member(n)
		if !ok {
			return headers
		}
		if n == maxHeaders {
			s.refuse(inSchema, "must have at most 64 headers")
			return nil
		}
		name, ok := headerName(s, raw)
		if !ok {
			return nil
		}
		for i := range headers {
			if strings.EqualFold(headers[i].Name, name) {
				s.refuse(ruleDuplicate, "must not name a header twice, in whatever case")
				return nil
			}
		}
		value, ok := s.text()
		switch {
		case !ok:
			if s.fault.rule == inSchema {
				s.fault.text = "must have strings as values"
			}
			return nil
		case len(value) > maxHeaderValue:
			s.refuse(ruleBytes, "must have values of at most 8192 bytes")
			return nil
		}
		if total += len(name) + len(value); total > maxHeaderBytes {
			s.refuse(ruleBytes, "must have at most 16384 bytes of names and values")
			return nil
		}
		h := Header{Name: name, Value: view(value)}
		if !httpguts.ValidHeaderFieldValue(h.Value) {
			s.refuse(inSchema, "must not have control characters in a value")
			return nil
		}
		if headers == nil {
			headers = make([]Header, 0, 4)
		}
		headers = append(headers, h)
	}
}

func headerName(s *scanner, raw []byte) (string, bool) {
	key, ok := unquote(raw)
	if !ok {
		return "", s.refuse(ruleSurrogate, "must not have half a surrogate pair (\\ud800 to \\udfff) in a name")
	}
	name := view(key)
	if len(name) > maxHeaderName || !httpguts.ValidHeaderFieldName(name) {
		return "", s.refuse(inSchema, "must have names of 1 to 128 letters, digits or !#$%&'*+-.^_`|~")
	}
	if known, why := refusedHeader(name); known != "" {
		return "", s.refuse(inSchema, "must not have "+known+": "+why)
	}
	return name, true
}

// refusedHeader returns the header's usual spelling and why a request must not
// set it, or empty strings where it may. The schema has the same list.
func refusedHeader(name string) (known, why string) {
	var room [maxHeaderName]byte
	lowered := appendLower(room[:0], name)
	switch string(lowered) {
	case "authorization":
		return "Authorization", "the worker signs the call itself"
	case "cookie", "cookie2":
		return "Cookie", "calls carry no session"
	case "host":
		return "Host", "the connection's data centre decides it"
	case "content-length", "transfer-encoding", "trailer", "te", "expect":
		return "Content-Length, Transfer-Encoding, Trailer, TE or Expect", "the worker frames the body itself"
	case "connection", "keep-alive", "upgrade", "http2-settings":
		return "Connection, Keep-Alive, Upgrade or HTTP2-Settings", "they belong to the worker's connection to Zoho"
	case "idempotency-key", "x-idempotency-key":
		// Go's transport takes a request with one for repeatable and sends it twice by itself.
		return "Idempotency-Key or X-Idempotency-Key", "id is the idempotency key, and Zoho knows none"
	case "accept-encoding", "content-encoding":
		return "Accept-Encoding or Content-Encoding", "the worker compresses and decompresses itself"
	case "x-http-method-override", "x-http-method", "x-method-override", "x-original-url", "x-rewrite-url":
		// They would make another call of it than the one that was judged repeatable or claimed.
		return "X-HTTP-Method-Override, X-Original-URL and the like", "method and url say what is called"
	}
	switch {
	case bytes.HasPrefix(lowered, []byte("proxy-")):
		return "Proxy-Authorization, Proxy-Connection and the like", "they belong to the worker's connection to Zoho"
	case bytes.HasPrefix(lowered, []byte("nats-")):
		return "headers that begin with Nats-", "they belong to the message, not to the call"
	}
	return "", ""
}
