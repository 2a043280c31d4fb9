package zoho

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/secret"
)

func TestRequestOnTheWire(t *testing.T) {
	t.Parallel()
	s := listen(t, func(c *rawConn) {
		for {
			if _, _, err := c.request(); err != nil {
				return
			}
			c.say(createdOK)
		}
	})
	c := newClient(t, s.url)
	host := strings.TrimPrefix(s.url, "http://")
	for _, row := range []struct {
		name   string
		change func(*Call)
		want   []string // lines of the head, whole
		not    []string // parts of it
	}{
		{"insert", func(c *Call) {}, []string{
			"POST /crm/v8/Leads HTTP/1.1", "Host: " + host, "Authorization: Zoho-oauthtoken " + markedToken,
			"Accept-Encoding: gzip", "Content-Type: application/json", "Content-Length: 30", "User-Agent: zoho-worker",
		}, []string{"Transfer-Encoding", "Connection"}},
		{"path and query byte for byte", func(c *Call) {
			c.Path, c.RawQuery = "/crm/v8/%E2%82%AC%2fa%2Fb/(x)!~*", "page_token=a+b%20c&&=&q=(A:equals:%28)&x=%zz"
		}, []string{"POST /crm/v8/%E2%82%AC%2fa%2Fb/(x)!~*?page_token=a+b%20c&&=&q=(A:equals:%28)&x=%zz HTTP/1.1"}, nil},
		{"empty POST", func(c *Call) { c.Body, c.ContentType = nil, "" }, []string{"Content-Length: 0"}, []string{"Content-Type", "chunked"}},
		{"empty PATCH", func(c *Call) { c.Method, c.Body, c.ContentType = "PATCH", nil, "" }, []string{"Content-Length: 0"}, nil},
		{
			"headers of the caller", func(c *Call) {
				c.Headers = []envelope.Header{{Name: "X-EXTERNAL", Value: "Leads.Ext"}, {Name: "feature", Value: "bulk-write"}, {Name: "content-type", Value: "text/csv"}, {Name: "user-agent", Value: "mine"}, {Name: "accept-encoding", Value: "br"}}
			},
			[]string{"X-EXTERNAL: Leads.Ext", "feature: bulk-write", "content-type: text/csv", "user-agent: mine", "Accept-Encoding: gzip"},
			[]string{"application/json", "zoho-worker", "br", "Go-http-client"},
		},
		{"range", func(c *Call) {
			c.Method, c.Body, c.ContentType, c.Headers = "GET", nil, "", []envelope.Header{{Name: "range", Value: "bytes=0-1"}}
		}, []string{"Accept-Encoding: identity", "range: bytes=0-1"}, []string{"Content-Length"}},
	} {
		call := insert()
		row.change(call)
		if a := do(t, c, call); a.Status != 201 || a.Err != nil {
			t.Fatalf("%s: %+v", row.name, a)
		}
		s.mu.Lock()
		head := s.heads[len(s.heads)-1]
		s.mu.Unlock()
		for _, w := range row.want {
			if !strings.Contains(head+"\r\n", w+"\r\n") {
				t.Errorf("%s: no %q in\n%s", row.name, w, head)
			}
		}
		for _, w := range row.not {
			if strings.Contains(head, w) {
				t.Errorf("%s: %q in\n%s", row.name, w, head)
			}
		}
	}
	if s.accepted.Load() != 1 {
		t.Errorf("%d connections, want one kept", s.accepted.Load())
	}
}

// What isn't released is the caller's to keep, whatever comes after it; what is,
// leaves nothing behind.
func TestRelease(t *testing.T) {
	for name, header := range map[string]string{"plain": "", "compressed": "gzip"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := 0
			c := newClient(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
				n++
				body := []byte(strings.Repeat(strconv.Itoa(n), 2000))
				if header == "" {
					_, _ = w.Write(body)
					return
				}
				w.Header().Set("Content-Encoding", header)
				z := gzip.NewWriter(w)
				_, _ = z.Write(body)
				_ = z.Close()
			}))
			kept := do(t, c, insert())
			for want := 2; want < 8; want++ {
				a := do(t, c, insert())
				if string(a.Body) != strings.Repeat(strconv.Itoa(want), 2000) {
					t.Fatalf("answer %d begins with %.20q", want, a.Body)
				}
				a.Release()
				a.Release()
				if a.Body != nil {
					t.Error("a body is left")
				}
			}
			if string(kept.Body) != strings.Repeat("1", 2000) {
				t.Errorf("the first answer has become %.20q", kept.Body)
			}
		})
	}
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	date := "Tue, 10 Nov 2026 08:00:00 GMT"
	for _, row := range []struct {
		name    string
		status  int
		headers []string // name, value, …
		body    string
		want    Answer // Status and CreditsRemaining filled in
	}{
		{"created", 201, nil, `{"data":[{"code":"SUCCESS","details":{"id":"1"},"message":"record added","status":"success"}]}`, Answer{}},
		{"no content", 204, nil, "", Answer{}},
		{"not modified", 304, nil, "", Answer{}},
		{"credits", 200, []string{"X-API-CREDITS-REMAINING", "1234"}, "{}", Answer{CreditsRemaining: 1234}},
		{"no credits left", 200, []string{"X-API-CREDITS-REMAINING", "0"}, "{}", Answer{CreditsRemaining: 0}},
		{"credits below nothing", 200, []string{"X-API-CREDITS-REMAINING", "-5"}, "{}", Answer{}},
		{"credits nonsense", 200, []string{"X-API-CREDITS-REMAINING", "many"}, "{}", Answer{}},
		{"invalid token", 401, nil, `{"code":"INVALID_TOKEN","details":{},"message":"invalid oauth token","status":"error"}`, Answer{Code: "INVALID_TOKEN"}},
		{"scope mismatch in data", 401, nil, `{"data":[{"code":"OAUTH_SCOPE_MISMATCH","details":{},"status":"error"}]}`, Answer{Code: "OAUTH_SCOPE_MISMATCH"}},
		{"scope mismatch of each record", 401, nil, `{"data":[{"code":"OAUTH_SCOPE_MISMATCH","status":"error"},{"code":"OAUTH_SCOPE_MISMATCH","status":"error"}]}`, Answer{Code: "OAUTH_SCOPE_MISMATCH"}},
		{"two in data", 400, nil, `{"data":[{"code":"A","status":"error"},{"code":"B","status":"error"}]}`, Answer{}},
		{"a code at the top, and one in data", 400, nil, `{"code":"X","data":[{"code":"Y","status":"error"}]}`, Answer{Code: "X"}},
		{"white space first", 401, nil, "\r\n\t {\"code\":\"INVALID_TOKEN\"}", Answer{Code: "INVALID_TOKEN"}},
		{"an error as long as no error is", 400, nil, `{"code":"X","details":"` + strings.Repeat("x", maxFault) + `"}`, Answer{}},
		{"data of another shape", 400, nil, `{"code":"X","data":{"a":1}}`, Answer{Code: "X"}},
		{"200 with an error", 200, nil, `{"data":[{"code":"INVALID_DATA","details":{},"status":"error"}]}`, Answer{Code: "INVALID_DATA"}},
		{"200 with an error as long as none is there", 200, nil, `{"code":"X","details":"` + strings.Repeat("x", maxFault2x) + `","status":"error"}`, Answer{}},
		{"200 that only speaks of an error", 200, nil, `{"code":"SUCCESS","details":{"kind":"error"},"status":"success"}`, Answer{}},
		{"HTML", 502, nil, "<html>bad gateway</html>", Answer{}},
		{"not quite JSON", 500, nil, `{"code":`, Answer{}},
		{"429, retry_after in the body", 429, nil, `{"code":"TOO_MANY_REQUESTS","status":"error","details":{"retry_after":60,"limit":100}}`, Answer{Code: "TOO_MANY_REQUESTS", RetryAfter: time.Minute}},
		{"429, header before body", 429, []string{"Retry-After", "7"}, `{"code":"TOO_MANY_REQUESTS","details":{"retry_after":60}}`, Answer{Code: "TOO_MANY_REQUESTS", RetryAfter: 7 * time.Second}},
		{"429, old form", 429, nil, `{"code":429,"error":"TOO_MANY_REQUESTS","error_info":"Many","details":[]}`, Answer{Code: "TOO_MANY_REQUESTS"}},
		{"429, absurd retry_after", 429, nil, `{"code":"X","details":{"retry_after":1e99}}`, Answer{Code: "X", RetryAfter: 24 * time.Hour}},
		{"429, negative retry_after", 429, nil, `{"code":"X","details":{"retry_after":-5}}`, Answer{Code: "X"}},
		{"retry date by the server's clock", 503, []string{"Retry-After", "Tue, 10 Nov 2026 08:01:30 GMT", "Date", date}, "", Answer{RetryAfter: 90 * time.Second}},
		{"retry date far ahead", 503, []string{"Retry-After", "Wed, 10 Nov 2027 08:00:00 GMT", "Date", date}, "", Answer{RetryAfter: 24 * time.Hour}},
		{"retry date past", 503, []string{"Retry-After", "Tue, 10 Nov 2026 07:00:00 GMT", "Date", date}, "", Answer{}},
		{"retry far ahead", 503, []string{"Retry-After", "99999999999999999999999"}, "", Answer{RetryAfter: 24 * time.Hour}},
		{"retry nonsense", 503, []string{"Retry-After", "soon"}, "", Answer{}},
		{"retry negative", 503, []string{"Retry-After", "-1"}, "", Answer{}},
		{"redirect (B35)", 307, []string{"Location", "http://169.254.169.254/"}, "", Answer{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			calls := 0
			url := serve(t, func(w http.ResponseWriter, r *http.Request) {
				calls++
				for i := 0; i < len(row.headers); i += 2 {
					w.Header().Set(row.headers[i], row.headers[i+1])
				}
				w.WriteHeader(row.status)
				io.WriteString(w, row.body)
			})
			a := do(t, newClient(t, url), insert())
			want := row.want
			want.Status = row.status
			if want.CreditsRemaining == 0 && row.name != "no credits left" {
				want.CreditsRemaining = -1
			}
			got := *a
			if got.Took <= 0 || got.Started.IsZero() {
				t.Errorf("times: %+v", got)
			}
			if string(got.Body) != row.body {
				t.Errorf("body %q", got.Body)
			}
			if loc := header(a, "Location"); row.status == 307 && loc != "http://169.254.169.254/" {
				t.Errorf("location %q", loc)
			}
			got.Headers, got.Body, got.memory, got.Started, got.Took = nil, nil, nil, time.Time{}, 0
			if !reflect.DeepEqual(got, want) || calls != 1 {
				t.Errorf("%d calls\n got %+v\nwant %+v", calls, got, want)
			}
		})
	}
}

func TestAnswerHeaders(t *testing.T) {
	t.Parallel()
	url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cookie") != "" {
			t.Error("a cookie came back")
		}
		h := w.Header()
		h.Add("Set-Cookie", "_zcsr_tmp=x")
		h.Add("Set-Cookie", "JSESSIONID=y")
		h.Set("Set-Cookie2", "z")
		h.Set("Content-Type", "application/json;charset=UTF-8")
		h.Set("Keep-Alive", "timeout=5")
		h.Add("Via", "a")
		h.Add("Via", "b")
		h["Date"] = nil
		z := gzip.NewWriter(w)
		h.Set("Content-Encoding", "gzip")
		io.WriteString(z, "{}")
		z.Close()
	})
	c := newClient(t, url)
	want := []envelope.Header{{Name: "Content-Type", Value: "application/json;charset=UTF-8"}, {Name: "Via", Value: "a"}, {Name: "Via", Value: "b"}}
	for range 2 {
		if a := do(t, c, list()); !reflect.DeepEqual(a.Headers, want) || string(a.Body) != "{}" {
			t.Errorf("got %+v", a)
		}
	}
}

// Headers that Connection names are of this hop only.
func TestHopHeaders(t *testing.T) {
	t.Parallel()
	got := headers([]envelope.Header{
		{Name: "Connection", Value: "keep-alive, x-hop"}, {Name: "X-Hop", Value: "1"}, {Name: "X-Hops", Value: "2"},
	})
	if want := []envelope.Header{{Name: "X-Hops", Value: "2"}}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

func zipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, s)
	z.Close()
	return b.String()
}

// Rows F39 and B34, and what else a body can be. The limit is 1000 bytes.
func TestBodies(t *testing.T) {
	t.Parallel()
	chunked := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
	endless := func(piece string) func(*rawConn) {
		return func(c *rawConn) {
			for {
				if _, err := fmt.Fprintf(c.TCPConn, "%x\r\n%s\r\n", len(piece), piece); err != nil {
					return
				}
			}
		}
	}
	sized := func(head, body string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s", head, len(body), body)
	}
	zip := "Content-Encoding: gzip\r\n"
	full := strings.Repeat("x", 1000)
	for _, row := range []struct {
		name, say string
		then      func(*rawConn)
		body      string
		tooLarge  bool
		bad       error // of BodyError, or any error where errAny
	}{
		{"exactly the limit", sized("", full), nil, full, false, nil},
		{"one more", sized("", full+"x"), nil, "", true, nil},
		{"chunked", chunked + "\r\n3e8\r\n" + full + "\r\n0\r\n\r\n", nil, full, false, nil},
		{"chunked, one more", chunked + "\r\n3e9\r\n" + full + "x\r\n0\r\n\r\n", nil, "", true, nil},
		{"chunked endless", chunked + "\r\n", endless(full), "", true, nil},
		{"to the end of the connection", "HTTP/1.1 200 OK\r\n\r\nabc", nil, "abc", false, nil},
		{"JSON to the end of the connection", "HTTP/1.1 200 OK\r\nContent-Type: application/json;charset=UTF-8\r\n\r\n{}", nil, "{}", false, nil},
		{"half of it", "HTTP/1.1 200 OK\r\nContent-Type: application/json;charset=UTF-8\r\n\r\n{", nil, "", false, ErrClosed},
		{"nothing of it", "HTTP/1.1 200 OK\r\nContent-Type: Application/JSON\r\n\r\n", nil, "", false, ErrClosed},
		{"what isn't JSON and is whole", sized("Content-Type: application/json\r\n", "{"), nil, "{", false, nil},
		{"huge length", "HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\nab", nil, "", true, nil},
		{"gzip", sized(zip, zipped(full)), nil, full, false, nil},
		{"gzip in two members", sized(zip, zipped("ab")+zipped("cd")), nil, "abcd", false, nil},
		{"gzip of nothing", sized(zip, zipped("")), nil, "", false, nil},
		{"gzip without a body", sized(zip, ""), nil, "", false, nil},
		{"gzip chunked without a body", chunked + zip + "\r\n0\r\n\r\n", nil, "", false, nil},
		{"gzip, 204", "HTTP/1.1 204 No Content\r\n" + zip + "\r\n", nil, "", false, nil},
		{"gzip bomb 1:1000", sized(zip, zipped(strings.Repeat("\x00", 10<<20))), nil, "", true, nil},
		{"gzip endless empty members", chunked + zip + "\r\n", endless(zipped("")), "", true, nil},
		{"gzip by its old name", sized("Content-Encoding: x-gzip\r\n", zipped("abc")), nil, "abc", false, nil},
		{"gzip twice", sized(zip+zip, "abc"), nil, "abc", false, nil},
		{"gzip cut off between its members", "HTTP/1.1 200 OK\r\n" + zip + "Content-Length: 999\r\n\r\n" + zipped("ab"), nil, "", false, ErrClosed},
		{"gzip cut off in its head", sized(zip, zipped(full)[:5]), nil, "", false, ErrClosed},
		{"gzip cut off", sized(zip, zipped(full)[:12]), nil, "", false, ErrClosed},
		{"gzip that is none", sized(zip, markedBody), nil, "", false, errAny},
		{"gzip with a bad sum", sized(zip, badSum(full)), nil, "", false, errAny},
		{"other encoding", sized("Content-Encoding: br\r\n", "abc"), nil, "abc", false, nil},
		{"shorter than its length", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", nil, "", false, ErrClosed},
		{"reset within", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", (*rawConn).reset, "", false, errAny},
		{"endless trailer", chunked + "\r\n0\r\n", func(c *rawConn) {
			for {
				if _, err := io.WriteString(c.TCPConn, "T: x\r\n"); err != nil {
					return
				}
			}
		}, "", false, ErrBroken},
		{"chunk of nonsense", chunked + "\r\n" + markedBody + "\r\n", nil, "", false, ErrBroken},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := listen(t, func(c *rawConn) {
				if _, _, err := c.request(); err != nil {
					return
				}
				c.say(row.say)
				if row.then != nil {
					row.then(c)
				}
			})
			a := do(t, newClient(t, s.url, func(c *Config) { c.MaxResponse = 1000 }), insert())
			if a.Status == 0 || a.Unsent || s.requests.Load() != 1 {
				t.Fatalf("answer %+v", a)
			}
			if string(a.Body) != row.body || a.TooLarge != row.tooLarge || (a.BodyError != nil) != (row.bad != nil) {
				t.Errorf("answer %+v", a)
			}
			if row.bad != nil && row.bad != errAny && !errors.Is(a.BodyError, row.bad) {
				t.Errorf("body error %v", a.BodyError)
			}
			if row.tooLarge != errors.Is(a.Err, ErrTooLarge) || (a.Err == nil) != (row.bad == nil && !row.tooLarge) {
				t.Errorf("err %v", a.Err)
			}
			if a.Err != nil && strings.Contains(a.Err.Error(), markedBody) {
				t.Errorf("error quotes the server: %v", a.Err)
			}
			if row.name == "other encoding" && header(a, "Content-Encoding") != "br" {
				t.Error("encoding not told")
			}
		})
	}
}

var errAny = errors.New("any")

func badSum(s string) string {
	b := []byte(zipped(s))
	b[len(b)-8] ^= 1
	return string(b)
}

// Row F38: a slow server holds a call no longer than CallTimeout, and than its own.
func TestSlow(t *testing.T) {
	t.Parallel()
	drip := func(c *rawConn, s string) {
		for {
			if _, err := io.WriteString(c.TCPConn, s); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	for name, row := range map[string]struct {
		serve  func(*rawConn)
		status int
	}{
		"no header":   {func(c *rawConn) { c.Read(make([]byte, 1)) }, 0},
		"slow header": {func(c *rawConn) { c.say("HTTP/1.1 200 OK\r\nX: "); drip(c, "x") }, 0},
		"slow body":   {func(c *rawConn) { c.say("HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"); drip(c, "x") }, 200},
		"slow chunks": {func(c *rawConn) {
			c.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			drip(c, "1\r\nx\r\n")
		}, 200},
		"slow trailer": {func(c *rawConn) {
			c.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: ")
			drip(c, "x")
		}, 200},
		"endless 102s": {func(c *rawConn) { drip(c, "HTTP/1.1 102 Processing\r\n\r\n") }, 0},
	} {
		for bound, call := range map[time.Duration]time.Duration{1500 * time.Millisecond: time.Hour, time.Minute: 1500 * time.Millisecond} {
			t.Run(fmt.Sprint(name, " ", min(bound, call) == call), func(t *testing.T) {
				t.Parallel()
				s := listen(t, func(c *rawConn) {
					if _, _, err := c.request(); err == nil {
						row.serve(c)
					}
				})
				slow := insert()
				slow.Timeout = call
				a := do(t, newClient(t, s.url, func(c *Config) { c.CallTimeout = bound }), slow)
				if a.Status != row.status || a.Unsent || !errors.Is(a.Err, ErrCallTimeout) && name != "endless 102s" {
					t.Errorf("answer %+v", a)
				}
				if row.status != 0 && a.BodyError == nil {
					t.Errorf("no body error: %+v", a)
				}
				if s.requests.Load() != 1 {
					t.Errorf("%d requests", s.requests.Load())
				}
			})
		}
	}
}

// Row B34: 1 MB of header, and what is just too much.
func TestHeaderTooLarge(t *testing.T) {
	t.Parallel()
	for size, status := range map[int]int{maxResponseHeader - 1<<10: 200, maxResponseHeader: 0, 1 << 20: 0} {
		s := listen(t, func(c *rawConn) {
			c.request()
			c.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: " + strings.Repeat("x", size) + "\r\n\r\n")
		})
		a := do(t, newClient(t, s.url), insert())
		if a.Status != status || a.Unsent || (status == 0) != errors.Is(a.Err, ErrHeaderTooLarge) || s.requests.Load() != 1 {
			t.Errorf("%d bytes: answer %+v", size, a)
		}
	}
}

// What comes with a status that no response may have is no answer.
func TestStatusOutOfRange(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]int{"099": 0, "599": 599, "600": 0, "999": 0, "20x": 0} {
		s := listen(t, func(c *rawConn) {
			c.request()
			c.say("HTTP/1.1 " + status + " Blocked\r\nContent-Length: 2\r\n\r\n{}")
		})
		a := do(t, newClient(t, s.url), insert())
		if a.Status != want || a.Unsent || (want == 0) != errors.Is(a.Err, ErrBroken) {
			t.Errorf("%s: answer %+v", status, a)
		}
	}
}

func BenchmarkDo(b *testing.B) {
	answer := []byte(`{"data":[{"code":"SUCCESS","details":{"id":"5725767000000524157"},"message":"record added","status":"success"}]}`)
	small := zipped(string(answer))
	for name, handler := range map[string]http.HandlerFunc{
		"plain": func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Type", "application/json;charset=UTF-8")
			w.WriteHeader(201)
			w.Write(answer)
		},
		"gzip": func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(201)
			io.WriteString(w, small)
		},
	} {
		b.Run(name, func(b *testing.B) {
			c := newClient(b, serve(b, handler))
			call := &Call{
				Location: "us", Environment: Production, Token: secret.New(markedToken), Method: "POST", Path: "/crm/v8/Leads",
				ContentType: "application/json", Body: bytes.Repeat([]byte("x"), 512), Permit: func() error { return nil },
			}
			b.ReportAllocs()
			for b.Loop() {
				if a := c.Do(b.Context(), call); a.Status != 201 || a.Err != nil {
					b.Fatalf("%+v", a)
				}
			}
		})
	}
}
