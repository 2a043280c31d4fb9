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

// scratchSize is the largest scratch buffer that is kept for the next body.
const scratchSize = 256 << 10

var (
	unzippers = sync.Pool{New: func() any { return new(gzip.Reader) }}
	scratches = sync.Pool{New: func() any { return new(bytes.Buffer) }}
)

// readBody returns the body of resp, decompressed, or ErrTooLarge where it is
// longer than limit bytes before or after. The result is the caller's alone.
func readBody(resp *http.Response, limit int) ([]byte, error) {
	if resp.ContentLength == 0 {
		return nil, nil
	}
	if !gzipped(resp.Header) {
		if resp.ContentLength > int64(limit) {
			return nil, ErrTooLarge
		}
		if resp.ContentLength > 0 {
			body := make([]byte, resp.ContentLength)
			if _, err := io.ReadFull(resp.Body, body); err != nil {
				return nil, err
			}
			// The end of the body has to be read for the connection to be kept.
			var end [1]byte
			_, err := resp.Body.Read(end[:])
			if err == io.EOF {
				err = nil
			}
			return body, err
		}
		return drain(resp.Body, limit)
	}
	// Compressed data that unfolds to limit bytes is hardly longer than they
	// are, so that endless empty blocks end here.
	packed := &bounded{r: resp.Body, left: int64(limit) + int64(limit)/8 + 4096}
	z := unzippers.Get().(*gzip.Reader)
	defer func() {
		packed.r = nil // a pooled reader mustn't keep the connection alive
		unzippers.Put(z)
	}()
	if err := z.Reset(packed); err != nil {
		if errors.Is(err, io.EOF) && !packed.any {
			return nil, nil // an empty body that nevertheless says gzip
		}
		return nil, err
	}
	return drain(z, limit)
}

// drain reads r to its end by way of a scratch buffer and returns a copy of its
// exact size.
func drain(r io.Reader, limit int) ([]byte, error) {
	b := scratches.Get().(*bytes.Buffer)
	defer func() {
		if b.Cap() <= scratchSize {
			b.Reset()
			scratches.Put(b)
		}
	}()
	n, err := b.ReadFrom(&io.LimitedReader{R: r, N: int64(limit) + 1})
	if n > int64(limit) {
		return nil, ErrTooLarge
	}
	if err != nil || n == 0 {
		return nil, err
	}
	return bytes.Clone(b.Bytes()), nil
}

// bounded is an io.Reader that fails with ErrTooLarge where an io.LimitedReader ends.
type bounded struct {
	r    io.Reader
	left int64
	any  bool
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
	b.any = b.any || n > 0
	return n, err
}

func gzipped(h http.Header) bool {
	v := h["Content-Encoding"]
	return len(v) == 1 && (strings.EqualFold(v[0], "gzip") || strings.EqualFold(v[0], "x-gzip"))
}

// read fills a with what the response's header and body say. a.Body is set.
func (a *Answer) read(resp *http.Response) {
	h := resp.Header
	a.Headers = headers(h)
	if v := h["X-Api-Credits-Remaining"]; len(v) > 0 {
		if n, err := strconv.Atoi(v[0]); err == nil && n >= 0 {
			a.CreditsRemaining = n
		}
	}
	fault := readFault(a.Status, a.Body)
	a.Code = fault.code
	a.RetryAfter = retryAfter(h, time.Now())
	if a.RetryAfter == 0 {
		a.RetryAfter = fault.retryAfter
	}
}

// dropped are the headers of a response that aren't delivered: the hop-by-hop
// ones, cookies (which Zoho sets on ordinary answers, zoho-facts 3.6), and the
// length, since the body's may be another after decompression.
var dropped = map[string]bool{
	"Set-Cookie": true, "Set-Cookie2": true, "Content-Length": true,
	"Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Connection": true,
	"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

func headers(h http.Header) []envelope.Header {
	out := make([]envelope.Header, 0, len(h))
	unzipped := gzipped(h)
	for name, values := range h {
		if dropped[name] || unzipped && name == "Content-Encoding" || named(h["Connection"], name) {
			continue
		}
		for _, v := range values {
			out = append(out, envelope.Header{Name: name, Value: v})
		}
	}
	slices.SortStableFunc(out, func(a, b envelope.Header) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// named reports whether a Connection header declares name hop-by-hop.
func named(connection []string, name string) bool {
	for _, line := range connection {
		for token := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(token), name) {
				return true
			}
		}
	}
	return false
}

// retryAfter reads the Retry-After header: seconds, or a date, which counts
// from the server's own Date where there is one. Zoho documents neither for the
// CRM (zoho-facts 3.5).
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
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
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
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
	if len(top.Data) == 1 && e.code() == "" {
		e = top.Data[0]
	}
	if status < 400 && text(e.Status) != "error" {
		return fault{}
	}
	return fault{code: e.code(), retryAfter: e.retryAfter()}
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
	if code := text(e.Code); code != "" {
		return code
	}
	return text(e.Error)
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
