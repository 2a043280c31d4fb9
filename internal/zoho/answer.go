package zoho

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"zoho-worker/internal/envelope"
)

// maxRetryAfter caps Answer.RetryAfter: Zoho's longest window is a day.
const maxRetryAfter = 24 * time.Hour

// memoryKept is the largest memory of a body that is kept for the next one.
const memoryKept = 256 << 10

var (
	unzippers = sync.Pool{New: func() any { return new(gzip.Reader) }}
	memories  = sync.Pool{New: func() any { return new([]byte) }}
)

// free gives the memory of a body back, nil being none.
func free(m *[]byte) {
	if m != nil && cap(*m) <= memoryKept {
		memories.Put(m)
	}
}

// readBody returns the body that r gives, decompressed, or ErrTooLarge where it
// is longer than limit bytes before or after. length is that on the wire, -1
// where it wasn't told. The memory is the caller's, to be freed or kept; nil: there
// is no body.
func readBody(r io.Reader, length int64, unzip bool, limit int) (m *[]byte, err error) {
	switch {
	case length == 0:
		return nil, nil
	case !unzip && length > int64(limit):
		return nil, ErrTooLarge
	}
	m = memories.Get().(*[]byte)
	switch {
	case unzip:
		*m, err = unzipped((*m)[:0], r, limit)
	case length > 0:
		*m = slices.Grow((*m)[:0], int(length))[:length]
		_, err = io.ReadFull(r, *m)
	default:
		*m, err = drain((*m)[:0], r, limit)
	}
	if err != nil || len(*m) == 0 {
		free(m)
		return nil, err
	}
	return m, nil
}

// unzipped is drain for what r holds compressed.
func unzipped(dst []byte, r io.Reader, limit int) ([]byte, error) {
	// Compressed data that unfolds to limit bytes is hardly longer than they
	// are, so that endless empty blocks end here.
	packed := &bounded{r: r, left: int64(limit) + int64(limit)/8 + 4096}
	z := unzippers.Get().(*gzip.Reader)
	defer func() {
		packed.r = nil // a pooled reader mustn't keep the connection alive
		unzippers.Put(z)
	}()
	if err := z.Reset(packed); err != nil {
		if errors.Is(err, io.EOF) { // before its first byte
			return dst, nil // an empty body that nevertheless says gzip
		}
		return dst, err
	}
	return drain(dst, z, limit)
}

// drain reads r to its end into dst's memory, or more.
func drain(dst []byte, r io.Reader, limit int) ([]byte, error) {
	b := bytes.NewBuffer(dst)
	n, err := b.ReadFrom(&io.LimitedReader{R: r, N: int64(limit) + 1})
	if n > int64(limit) {
		err = ErrTooLarge
	}
	return b.Bytes(), err
}

// bounded is an io.Reader that fails with ErrTooLarge where an io.LimitedReader ends.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, ErrTooLarge
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.r.Read(p)
	b.left -= int64(n)
	return n, err
}

// field returns the first value of a header, "" where there is none, and how
// many there are.
func field(fields []envelope.Header, name string) (value string, n int) {
	for i := range fields {
		if fields[i].Name == name {
			if n == 0 {
				value = fields[i].Value
			}
			n++
		}
	}
	return value, n
}

func gzipped(fields []envelope.Header) bool {
	v, n := field(fields, "Content-Encoding")
	return n == 1 && (strings.EqualFold(v, "gzip") || strings.EqualFold(v, "x-gzip"))
}

// read fills a with what the response's header and body say. a.Body is set.
// The fields become a's.
func (a *Answer) read(fields []envelope.Header) {
	if v, n := field(fields, "X-Api-Credits-Remaining"); n > 0 {
		if n, err := strconv.Atoi(v); err == nil && n >= 0 {
			a.CreditsRemaining = n
		}
	}
	a.RetryAfter = retryAfter(fields)
	a.Headers = headers(fields)
	fault := readFault(a.Status, a.Body)
	a.Code = fault.code
	if a.RetryAfter == 0 {
		a.RetryAfter = fault.retryAfter
	}
}

// dropped reports whether a header of a response isn't delivered: the hop-by-hop
// ones, cookies (which Zoho sets on ordinary answers, zoho-facts 3.6), and the
// length, since the body's may be another after decompression.
func dropped(name string) bool {
	switch name {
	case "Set-Cookie", "Set-Cookie2", "Content-Length", "Connection", "Keep-Alive", "Proxy-Authenticate",
		"Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// headers returns those of the fields that are delivered, sorted by name, in
// the fields' own memory.
func headers(fields []envelope.Header) []envelope.Header {
	unzipped := gzipped(fields)
	var hops []string // what Connection headers declare to be of this hop only
	for i := range fields {
		if fields[i].Name == "Connection" {
			hops = append(hops, fields[i].Value)
		}
	}
	out := fields[:0]
	for _, h := range fields {
		if dropped(h.Name) || unzipped && h.Name == "Content-Encoding" || slices.ContainsFunc(hops, func(hop string) bool { return hasToken(hop, h.Name) }) {
			continue
		}
		out = append(out, h)
	}
	clear(fields[len(out):])
	slices.SortStableFunc(out, func(a, b envelope.Header) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// retryAfter reads the Retry-After header: seconds, or a date, which counts
// from the server's own Date where there is one. Zoho documents neither for the
// CRM (zoho-facts 3.5).
func retryAfter(fields []envelope.Header) time.Duration {
	v, _ := field(fields, "Retry-After")
	if v == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(v, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		return time.Duration(min(seconds, uint64(maxRetryAfter/time.Second))) * time.Second
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	now := time.Now()
	v, _ = field(fields, "Date")
	if date, err := http.ParseTime(v); err == nil {
		now = date
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// Bodies up to these lengths are searched for an error. An error is short;
// that of a 2xx (zoho-facts 4.1: documented for mass update) is recognised by
// its status, before anything is decoded.
const (
	maxFault   = 64 << 10
	maxFault2x = 2 << 10
)

type fault struct {
	code       string
	retryAfter time.Duration
}

// readFault finds Zoho's error in a body, which may as well be HTML or nothing.
func readFault(status int, body []byte) fault {
	body = bytes.TrimLeft(body, " \t\r\n")
	if len(body) == 0 || len(body) > maxFault || body[0] != '{' {
		return fault{}
	}
	if status < 400 && (len(body) > maxFault2x || !bytes.Contains(body, []byte(`"error"`))) {
		return fault{}
	}
	var top struct {
		errorObject
		Data []errorObject `json:"data"`
	}
	if json.Unmarshal(body, &top) != nil {
		// A data of another shape; the top is what matters then.
		top.Data = nil
		if json.Unmarshal(body, &top.errorObject) != nil {
			return fault{}
		}
	}
	e := top.errorObject
	if len(top.Data) > 0 && e.code() == "" {
		e = top.Data[0]
		if slices.ContainsFunc(top.Data, func(other errorObject) bool { return other.code() != e.code() }) {
			return fault{}
		}
	}
	if status < 400 && text(e.Status) != "error" {
		return fault{}
	}
	return fault{code: e.code(), retryAfter: e.retryAfter()}
}

// TokenRefused reports whether the answer's code says that the access token is no
// longer good (zoho-facts 1.6).
func (a *Answer) TokenRefused() bool {
	switch a.Code {
	case "INVALID_TOKEN", "AUTHENTICATION_FAILURE", "INVALID_OAUTHTOKEN", "INVALID_TICKET":
		return true
	}
	return false
}

// errorObject is Zoho's error, each field raw because each has been seen with
// another type: {"code":429,"error":"TOO_MANY_REQUESTS","details":[]}.
type errorObject struct {
	Code    json.RawMessage `json:"code"`
	Error   json.RawMessage `json:"error"`
	Status  json.RawMessage `json:"status"`
	Details json.RawMessage `json:"details"`
}

func (e errorObject) code() string {
	if code := codeOf(e.Code); code != "" {
		return code
	}
	return codeOf(e.Error)
}

// maxCode is longer than any code of Zoho's.
const maxCode = 100

// codeOf returns a code, or "" where what is there doesn't look like one: codes are
// logged, shown and kept in records, and nothing of a body may pass for one.
func codeOf(raw json.RawMessage) string {
	code := text(raw)
	if len(code) > maxCode {
		return ""
	}
	for i := range len(code) {
		if code[i] < ' ' || code[i] >= 0x7f {
			return ""
		}
	}
	return code
}

func (e errorObject) retryAfter() time.Duration {
	var details struct {
		RetryAfter float64 `json:"retry_after"`
	}
	if len(e.Details) == 0 || json.Unmarshal(e.Details, &details) != nil || !(details.RetryAfter > 0) {
		return 0
	}
	return time.Duration(min(details.RetryAfter, maxRetryAfter.Seconds()) * float64(time.Second))
}

// text returns a JSON string's value, or "" for anything else.
func text(raw json.RawMessage) string {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}
