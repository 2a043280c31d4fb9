package zoho

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http/httputil"
	"net/textproto"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"

	"zoho-worker/internal/envelope"
)

// head is the head of an answer: what of HTTP/1.1 the worker needs, and nothing
// that is doubtful. What isn't understood to the last byte is ErrBroken.
type head struct {
	status int
	// fields are all headers, in the order in which they came, their names in
	// the usual spelling.
	fields  []envelope.Header
	length  int64 // of the body on the wire; -1: not told
	chunked bool
	close   bool // the connection ends with this answer
}

// readHead reads to the empty line that ends a head.
func (k *kept) readHead() (string, error) {
	for looked := 0; ; {
		b := k.buf[k.r:k.w]
		if end := headEnd(b, looked); end > 0 {
			k.r += end
			return string(b[:end]), nil
		}
		if len(b) >= maxResponseHeader {
			return "", ErrHeaderTooLarge
		}
		looked = max(0, len(b)-3)
		if err := k.fill(); err != nil {
			return "", err
		}
	}
}

// headEnd returns the length of the head that b begins with, its empty line
// included, or 0. There is none before looked.
func headEnd(b []byte, looked int) int {
	for i := looked; ; i++ {
		n := bytes.IndexByte(b[i:], '\n')
		if n < 0 {
			return 0
		}
		i += n
		switch {
		case i+1 < len(b) && b[i+1] == '\n':
			return i + 2
		case i+2 < len(b) && b[i+1] == '\r' && b[i+2] == '\n':
			return i + 3
		}
	}
}

// parse reads a head. The strings of h are parts of text.
func (h *head) parse(text string) error {
	line, rest := cutLine(text)
	status, minor, ok := statusLine(line)
	if !ok {
		return ErrBroken
	}
	*h = head{status: status, fields: h.fields[:0], length: -1, close: minor == '0'}
	if cap(h.fields) == 0 {
		h.fields = make([]envelope.Header, 0, strings.Count(text, "\n"))
	}
	for {
		if line, rest = cutLine(rest); line == "" {
			return nil
		}
		if line[0] == ' ' || line[0] == '\t' { // a folded line goes on the one before
			last := len(h.fields) - 1
			if last < 0 || !httpguts.ValidHeaderFieldValue(line) {
				return ErrBroken
			}
			h.fields[last].Value = strings.TrimSpace(h.fields[last].Value + " " + strings.Trim(line, " \t"))
			switch h.fields[last].Name {
			case "Content-Length", "Transfer-Encoding", "Connection":
				return ErrBroken // what frames the answer isn't folded
			}
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if value = strings.Trim(value, " \t"); !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return ErrBroken
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		h.fields = append(h.fields, envelope.Header{Name: name, Value: value})
		switch name {
		case "Content-Length":
			n, ok := contentLength(value)
			if !ok || h.length >= 0 && h.length != n {
				return ErrBroken
			}
			h.length = n
		case "Transfer-Encoding":
			if h.chunked || minor == '0' || !strings.EqualFold(value, "chunked") {
				return ErrBroken
			}
			h.chunked = true
		case "Connection":
			h.close = h.close || hasToken(value, "close")
		}
	}
}

// cutLine cuts the first line off, without its end.
func cutLine(s string) (line, rest string) {
	i := strings.IndexByte(s, '\n')
	line, rest = s[:i], s[i+1:]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line, rest
}

// statusLine reads "HTTP/1.1 200 OK". A status beyond 599, as some firewalls have, is
// none of HTTP, and no response could tell it.
func statusLine(line string) (status int, minor byte, ok bool) {
	const start = "HTTP/1."
	if len(line) < len("HTTP/1.1 200") || line[:len(start)] != start || line[8] != ' ' || len(line) > 12 && line[12] != ' ' {
		return 0, 0, false
	}
	if minor = line[7]; minor != '0' && minor != '1' {
		return 0, 0, false
	}
	for _, c := range []byte(line[9:12]) {
		if c < '0' || c > '9' {
			return 0, 0, false
		}
		status = status*10 + int(c-'0')
	}
	return status, minor, status >= 100 && status <= 599
}

// contentLength reads a length: digits, and no more than a body can have.
func contentLength(value string) (n int64, ok bool) {
	if value == "" || len(value) > 18 {
		return 0, false
	}
	for i := range len(value) {
		c := value[i]
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// hasToken reports whether a list of tokens, as of a Connection header, holds one.
func hasToken(list, token string) bool {
	for t := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(t, " \t"), token) {
			return true
		}
	}
	return false
}

// bodyReader reads one body off a connection, and knows whether its end was
// reached where the head had said.
type bodyReader struct {
	k     *kept
	left  int64 // of a body whose length was told; -1: to the connection's end
	chunk io.Reader
	lines *bufio.Reader // what chunk reads
	ended bool
}

var lineReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 2<<10) }}

// chunks has the body read in chunks.
func (b *bodyReader) chunks() {
	b.lines = lineReaders.Get().(*bufio.Reader)
	b.lines.Reset(b.k)
	b.chunk = httputil.NewChunkedReader(b.lines)
}

// release gives back what chunks took. What came behind the body makes the
// connection useless.
func (b *bodyReader) release() {
	b.ended = b.ended || b.left == 0
	if b.lines == nil {
		return
	}
	b.ended = b.ended && b.lines.Buffered() == 0
	b.lines.Reset(nil)
	lineReaders.Put(b.lines)
	b.lines, b.chunk = nil, nil
}

// Read implements io.Reader.
func (b *bodyReader) Read(p []byte) (int, error) {
	switch {
	case b.ended || b.left == 0 && b.lines == nil:
		return 0, io.EOF
	case b.lines != nil:
		n, err := b.chunk.Read(p)
		if errors.Is(err, io.EOF) {
			if err = b.trailer(); err == nil {
				b.ended = true
				err = io.EOF
			}
		}
		return n, err
	case b.left < 0:
		n, err := b.k.Read(p)
		b.ended = errors.Is(err, io.EOF)
		return n, err
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.k.Read(p)
	if b.left -= int64(n); b.left > 0 && errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// maxTrailer bounds what may stand behind the last chunk.
const maxTrailer = 1 << 10

// trailer passes over what stands behind the last chunk, to the empty line.
func (b *bodyReader) trailer() error {
	for total := 0; total < maxTrailer; {
		line, err := b.lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case len(line) < 2 || line[len(line)-2] != '\r':
			return ErrBroken
		case len(line) == 2:
			return nil
		}
		name, value, ok := strings.Cut(string(line[:len(line)-2]), ":")
		if !ok || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return ErrBroken
		}
		total += len(line)
	}
	return ErrBroken
}
