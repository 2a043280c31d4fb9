package zoho

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// What is understood here, net/http understands, and in the same way: status,
// headers and body. What it understands and we don't becomes ErrBroken.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		okEmpty, createdOK,
		"HTTP/1.1 204 No Content\r\nX-A: b\r\nx-a:c \r\n\r\n",
		"HTTP/1.1 200\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc",
		"HTTP/1.0 200 OK\nVia: a\n  b\n\nabc",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n1\r\na\r\n0\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 10\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\na",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		k := &kept{link: &script{Reader: bytes.NewReader(data)}}
		var got reply
		again, err := k.read(&got, 1<<20)
		if err != nil || got.bodyErr != nil || gzipped(got.fields) {
			return
		}
		r := bufio.NewReader(bytes.NewReader(data))
		var want *http.Response
		for {
			if want, err = http.ReadResponse(r, &http.Request{Method: "POST"}); err != nil {
				t.Fatalf("net/http: %v, but we have %d %+v %q", err, got.status, got.fields, got.body)
			}
			if want.StatusCode >= 200 {
				break
			}
		}
		body, err := io.ReadAll(want.Body)
		if err != nil || want.StatusCode != got.status || !bytes.Equal(body, got.body) {
			t.Fatalf("net/http: %d %q %v, we: %d %q", want.StatusCode, body, err, got.status, got.body)
		}
		if again && want.Close {
			t.Fatal("kept although it closes")
		}
		seen := http.Header{}
		for _, h := range got.fields {
			seen[h.Name] = append(seen[h.Name], h.Value)
		}
		for name, values := range want.Header {
			if framing(name) {
				continue
			}
			if words(values) != words(seen[name]) {
				t.Fatalf("%s: net/http %q, we %q", name, values, seen[name])
			}
			delete(seen, name)
		}
		for name := range seen {
			if !framing(name) {
				t.Fatalf("%s: not in net/http's", name)
			}
		}
	})
}

// A connection is kept only where the answer ended as its head said, and nothing
// stands behind it.
func TestUsableAgain(t *testing.T) {
	t.Parallel()
	const ok, chunked = "HTTP/1.1 200 OK\r\n", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
	for name, c := range map[string]struct {
		said   string
		again  bool
		broken bool
	}{
		"length":                       {okEmpty, true, false},
		"length, and more":             {okEmpty + "H", false, false},
		"chunked":                      {ok + chunked, true, false},
		"chunked, and more":            {ok + chunked + "H", false, false},
		"chunked, cut":                 {ok + chunked[:len(chunked)-2], false, false},
		"no content":                   {"HTTP/1.1 204 No Content\r\n\r\n", true, false},
		"no content, and more":         {"HTTP/1.1 204 No Content\r\n\r\nH", false, false},
		"to the end":                   {ok + "\r\n{}", false, false},
		"closes":                       {ok + "Connection: close\r\nContent-Length: 2\r\n\r\n{}", false, false},
		"HTTP/1.0":                     {"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", false, false},
		"two lengths":                  {ok + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", false, true},
		"a folded length":              {ok + "Content-Length: 2\r\n 0\r\n\r\n{}", false, true},
		"a folded transfer encoding":   {ok + "Transfer-Encoding: chunked\r\n , gzip\r\n\r\n0\r\n\r\n", false, true},
		"a folded connection":          {ok + "Content-Length: 2\r\nConnection: keep-alive,\r\n close\r\n\r\n{}", false, true},
		"chunked, and chunked":         {ok + "Transfer-Encoding: chunked\r\n" + chunked, false, true},
		"another transfer encoding":    {ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", false, true},
		"chunked, of HTTP/1.0":         {"HTTP/1.0 200 OK\r\n" + chunked, false, true},
		"a protocol that was switched": {"HTTP/1.1 101 Switching Protocols\r\n\r\n", false, true},
	} {
		k := &kept{link: &script{Reader: strings.NewReader(c.said)}}
		var r reply
		again, err := k.read(&r, 1<<20)
		if again != c.again || errors.Is(err, ErrBroken) != c.broken {
			t.Errorf("%s: again %v, %v", name, again, err)
		}
		k = &kept{link: &script{Reader: iotest.OneByteReader(strings.NewReader(c.said))}}
		var slow reply
		if _, err := k.read(&slow, 1<<20); errors.Is(err, ErrBroken) != c.broken || slow.status != r.status || !bytes.Equal(slow.body, r.body) {
			t.Errorf("%s, byte for byte: %v, status %d, not %d", name, err, slow.status, r.status)
		}
	}
}

// words leaves it open how many blanks a folded line is joined by.
func words(values []string) string {
	return strings.Join(strings.Fields(strings.Join(values, " | ")), " ")
}

// framing headers net/http keeps elsewhere.
func framing(name string) bool {
	return name == "Content-Length" || name == "Transfer-Encoding" || name == "Trailer" || name == "Connection"
}

type script struct {
	stubConn
	io.Reader
}

func (s *script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

// Kept connections are closed when nobody has used them for a while, and those
// used last are kept.
func TestSweep(t *testing.T) {
	t.Parallel()
	where := place{"http", "127.0.0.1:1"}
	p := pool{most: 2}
	old, young, third := newKept(&stubConn{}, where), newKept(&stubConn{}, where), newKept(&stubConn{}, where)
	p.put(old)
	p.put(young)
	p.put(third) // one too many
	old.since = time.Now().Add(-idleTimeout)
	p.sweep()
	if k := p.get(where); k != young {
		t.Errorf("got %p, want %p", k, young)
	}
	if k := p.get(where); k != nil {
		t.Error("an old one was kept")
	}
	p.put(young)
	p.close()
	p.put(old)
	if k := p.get(where); k != nil {
		t.Error("kept after close")
	}
	p.put(third)
	if k := p.get(where); k != third {
		t.Error("not kept, although it is used again")
	}
}
