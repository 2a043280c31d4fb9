package envelope

import (
	"bytes"
	"unicode/utf8"
)

// parseURL applies the URL rule: it takes what a caller wrote as url and gives
// the path to call, and url's own query string byte for byte.
//
// The path is rebuilt from the decoded segments, never joined from what came:
// "@evil", ".evil", "//evil", "/%2e%2e/" and their like can't reach another
// host, or anything outside /crm, however often somebody on the way decodes.
func parseURL(raw []byte) (path string, query []byte, f *fault) {
	rest, query, _ := bytes.Cut(raw, []byte{'?'})
	if len(rest) > maxPath {
		return "", nil, urlFault(ruleBytes, "must have at most 2048 bytes before the '?'")
	}
	if f := checkPathBytes(rest); f != nil {
		return "", nil, f
	}
	if !hasVersion(rest) {
		return "", nil, urlFault(inSchema, "must begin with /v<N>/ or /bulk/v<N>/, like /v8/Leads, without host and without /crm")
	}
	if f := checkQueryString(query); f != nil {
		return "", nil, f
	}
	var room [256]byte
	out := append(room[:0], apiRoot...)
	for rest = rest[1:]; ; {
		segment, after, more := bytes.Cut(rest, []byte{'/'})
		if out, f = appendSegment(append(out, '/'), segment); f != nil {
			return "", nil, f
		}
		if !more {
			break
		}
		rest = after
	}
	if len(out) > len(apiRoot)+maxPath {
		return "", nil, urlFault(ruleBytes, "must have at most 2048 bytes before the '?', percent-encoded")
	}
	return string(out), query, nil
}

// apiRoot is where Zoho serves CRM on a data centre's API host.
const apiRoot = "/crm"

func urlFault(r rule, text string) *fault {
	return &fault{code: InvalidRequest, rule: r, field: "url", text: text}
}

func checkPathBytes(path []byte) *fault {
	if hasControl(path) {
		return urlFault(inSchema, "must not have control characters")
	}
	for _, c := range path {
		switch c {
		case ' ', '\\', '#', ';', '@':
			return urlFault(inSchema, "must not have a space, \\, #, ; or @ in its path: percent-encode @ as %40 and a space as %20")
		}
	}
	return nil
}

// hasVersion reports whether path begins with a version of the API and goes on
// after it. The version is compared as it came: nobody needs to encode it.
func hasVersion(path []byte) bool {
	rest, ok := bytes.CutPrefix(path, []byte("/"))
	if !ok {
		return false
	}
	rest, _ = bytes.CutPrefix(rest, []byte("bulk/"))
	version, after, ok := bytes.Cut(rest, []byte{'/'})
	if !ok || len(after) == 0 || len(version) < 2 || version[0] != 'v' {
		return false
	}
	if string(version) == "v2.1" { // the only version with a dot there ever was
		return true
	}
	return len(version) <= 3 && version[1] != '0' && isDigit(version[1]) && isDigit(version[len(version)-1])
}

// appendSegment decodes one segment of the path once, checks what came out,
// and appends it in the one encoding we send.
func appendSegment(out, segment []byte) ([]byte, *fault) {
	if isUnreserved(segment) {
		if isDots(segment) || len(segment) == 0 {
			return nil, urlFault(inSchema, "must not have empty segments, . or .. in its path")
		}
		return append(out, segment...), nil
	}
	var room [256]byte
	decoded, ok := percentDecode(room[:0], segment, false)
	switch {
	case !ok:
		return nil, urlFault(inSchema, "must follow every % by two hexadecimal digits: a % itself is %25")
	case isDots(decoded):
		return nil, urlFault(inSchema, "must not have . or .. in its path, encoded or not")
	case bytes.ContainsAny(decoded, "/\\;"):
		return nil, urlFault(inSchema, "must not have /, \\ or ; inside a segment of its path, encoded or not")
	case hasControl(decoded):
		return nil, urlFault(inSchema, "must not have control characters in its path, encoded or not")
	case hasEscape(decoded):
		return nil, urlFault(inSchema, "must be percent-encoded once, not twice")
	case !utf8.Valid(decoded):
		return nil, urlFault(ruleDecoded, "must be UTF-8 in its path once percent-decoded")
	}
	for _, c := range decoded {
		if unreserved[c] {
			out = append(out, c)
		} else {
			out = append(out, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return out, nil
}

const upperHex = "0123456789ABCDEF"

// unreserved marks the bytes that stay as they are in the path we send: RFC
// 3986's unreserved ones, and $, which Zoho uses in names of its own.
var unreserved = func() (t [256]bool) {
	for c := range 0x80 {
		t[c] = isWord(byte(c)) || c == '-' || c == '.' || c == '~' || c == '$'
	}
	return t
}()

func isUnreserved(b []byte) bool {
	for _, c := range b {
		if !unreserved[c] {
			return false
		}
	}
	return true
}

func isDots(b []byte) bool { return string(b) == "." || string(b) == ".." }

// hasEscape reports whether b would change if somebody percent-decoded it.
func hasEscape(b []byte) bool {
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			_, high := hexDigit(b[i+1])
			if _, low := hexDigit(b[i+2]); high && low {
				return true
			}
		}
	}
	return false
}

// percentDecode appends b decoded once, or returns false for a % that escapes
// nothing.
func percentDecode(out, b []byte, plusIsSpace bool) ([]byte, bool) {
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '%':
			if i+2 >= len(b) {
				return nil, false
			}
			high, ok1 := hexDigit(b[i+1])
			low, ok2 := hexDigit(b[i+2])
			if !ok1 || !ok2 {
				return nil, false
			}
			out = append(out, high<<4|low)
			i += 2
		case c == '+' && plusIsSpace:
			out = append(out, ' ')
		default:
			out = append(out, c)
		}
	}
	return out, true
}

// checkQueryString checks url's own query string, which is sent as it is. A
// raw @ is fine here: behind the path it can't name a host any more.
func checkQueryString(query []byte) *fault {
	if len(query) > maxQuery {
		return urlFault(ruleBytes, "must have at most 8192 bytes after the '?'")
	}
	for _, c := range query {
		if c <= ' ' || c >= 0x7f || c == '\\' || c == '#' || c == ';' {
			return urlFault(inSchema, "must be percent-encoded after the '?': no spaces, control characters, \\, #, ; or letters beyond ASCII; or use query")
		}
	}
	for rest := query; len(rest) > 0; {
		var pair []byte
		pair, rest, _ = bytes.Cut(rest, []byte{'&'})
		key, value, _ := bytes.Cut(pair, []byte{'='})
		var room [64]byte
		decoded, ok := percentDecode(room[:0], key, true)
		if !ok || !validEscapes(value) {
			return urlFault(inSchema, "must follow every % by two hexadecimal digits: a % itself is %25")
		}
		if isCredential(decoded) {
			r := inSchema
			if len(decoded) != len(key) || bytes.IndexByte(key, '+') >= 0 {
				r = ruleDecoded
			}
			return &fault{code: InvalidRequest, rule: r, field: "query", text: credentialText}
		}
	}
	return nil
}

func validEscapes(b []byte) bool {
	for i := 0; i < len(b); i++ {
		if b[i] == '%' {
			if i+2 >= len(b) {
				return false
			}
			_, high := hexDigit(b[i+1])
			if _, low := hexDigit(b[i+2]); !high || !low {
				return false
			}
			i += 2
		}
	}
	return true
}

const credentialText = "must not carry credentials (authtoken, access_token, zapikey and the like), nor may url: the worker signs the call itself"

// isCredential reports whether a query parameter's name is one under which
// Zoho, now or formerly, takes a token, a secret or a key.
func isCredential(key []byte) bool {
	var room [16]byte
	if len(key) > len(room) {
		return false
	}
	switch string(appendLower(room[:0], key)) {
	case "authtoken", "auth_token", "authorization", "access_token", "refresh_token",
		"oauth_token", "oauthtoken", "zoho-oauthtoken", "client_secret", "zapikey":
		return true
	}
	return false
}
