package zoho

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/secret"
)

// Rows F36 and F37: whatever the server does to a connection, a call that must
// not be repeated arrives at most once, and Unsent is never a lie.
func TestOnceIsNeverSentTwice(t *testing.T) {
	t.Parallel()
	ends := map[string]func(*rawConn){
		"reset":              func(c *rawConn) { c.reset() },
		"close":              func(*rawConn) {},
		"half an answer":     func(c *rawConn) { c.say("HTTP/1.1 201 Cre"); c.reset() },
		"not HTTP":           func(c *rawConn) { c.say(markedBody + "\r\n\r\n") },
		"1xx, then a reset":  func(c *rawConn) { c.say("HTTP/1.1 102 Processing\r\n\r\n"); c.reset() },
		"header, then reset": func(c *rawConn) { c.say("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n"); c.reset() },
	}
	calls := map[string]func(*Call){
		"insert":             func(*Call) {},
		"empty body":         func(c *Call) { c.Body = nil },
		"function by GET":    func(c *Call) { c.Method, c.Body = "GET", nil }, // net/http repeats GETs
		"delete":             func(c *Call) { c.Method, c.Body = "DELETE", nil },
		"header over buffer": func(c *Call) { c.Headers = []envelope.Header{{Name: "X", Value: strings.Repeat("x", 40<<10)}} },
		"large body":         func(c *Call) { c.Body = make([]byte, 300<<10) },
	}
	for endName, end := range ends {
		for callName, change := range calls {
			for _, reused := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/reused=%v", endName, callName, reused), func(t *testing.T) {
					t.Parallel()
					s := listen(t, func(c *rawConn) {
						for {
							r, _, err := c.request()
							if err != nil {
								return
							}
							if r.Header.Get("Warm") == "" {
								end(c)
								return
							}
							c.say(okEmpty)
						}
					})
					c := newClient(t, s.url)
					want := int64(1)
					if reused {
						warm := list()
						warm.Headers = []envelope.Header{{Name: "Warm", Value: "1"}}
						if a := do(t, c, warm); a.Status != 200 {
							t.Fatalf("warm up: %+v", a)
						}
						want++
					}
					call := insert()
					change(call)
					var permits atomic.Int64
					call.Permit = func() error { permits.Add(1); return nil }
					a := do(t, c, call)
					if got := s.requests.Load(); got != want {
						t.Errorf("%d requests arrived, want %d", got, want)
					}
					if a.Unsent || a.Status != 0 || a.Err == nil || permits.Load() != 1 {
						t.Errorf("permits %d, answer %+v", permits.Load(), a)
					}
					if strings.Contains(a.Err.Error(), markedBody) {
						t.Errorf("error quotes the server: %v", a.Err)
					}
					if reused && s.accepted.Load() > 2 {
						t.Errorf("%d connections", s.accepted.Load())
					}
				})
			}
		}
	}
}

// Row F37: a server that closes kept connections at the moment they are used
// again. Each id arrives at most once, and only what is said to be unsent doesn't.
func TestKeptConnectionsThatClose(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[string]int{}
	s := listen(t, func(c *rawConn) {
		r, _, err := c.request()
		if err != nil {
			return
		}
		mu.Lock()
		seen[r.Header.Get("Id")]++
		mu.Unlock()
		c.say(createdOK) // and closes without having said so
	})
	c := newClient(t, s.url)
	for i := range 300 {
		id := fmt.Sprint(i)
		call := insert()
		if i%3 == 0 {
			call.Body = nil
		}
		call.Headers = []envelope.Header{{Name: "Id", Value: id}}
		a := do(t, c, call)
		mu.Lock()
		n := seen[id]
		mu.Unlock()
		switch {
		case n > 1, a.Unsent && n != 0, a.Status != 0 && n != 1, a.Status != 0 && a.Unsent:
			t.Fatalf("id %s arrived %d times, answer %+v", id, n, a)
		}
	}
}

// corked holds what is written until pull.
type corked struct {
	net.Conn
	held []byte
	on   bool
}

func (c *corked) Write(p []byte) (int, error) {
	if c.on {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *corked) pull() {
	c.on = false
	c.Write(c.held)
}

// "Reused keep-alive connection closed, nothing written": the call goes out on
// another one, and is permitted once. Likewise where the server says more than it
// was asked for: that is nobody's answer, not that of the next call, which may be
// another Zoho user's.
func TestKeptConnectionClosedBeforeTheFirstByte(t *testing.T) {
	t.Parallel()
	roots, cert := authority(t, time.Now().Add(time.Hour))
	for name, secure := range map[string]bool{"plain": false, "TLS": true} {
		for end, spoil := range map[string]func(*rawConn, net.Conn){
			"reset":       func(c *rawConn, _ net.Conn) { c.reset() },
			"close":       func(_ *rawConn, over net.Conn) { over.Close() },
			"a word more": func(_ *rawConn, over net.Conn) { io.WriteString(over, okEmpty) },
			"at once":     nil,
		} {
			for what, change := range map[string]func(*Call){
				"":           func(call *Call) { call.Body = nil },
				"{}":         func(call *Call) { call.Body = []byte("{}") },
				"repeatable": func(call *Call) { call.Permit = nil },
			} {
				t.Run(name+"/"+end+"/"+what, func(t *testing.T) {
					t.Parallel()
					spoiled := make(chan struct{})
					s := listen(t, func(c *rawConn) {
						cork := &corked{Conn: c}
						over := net.Conn(cork)
						if secure {
							over = tls.Server(cork, &tls.Config{Certificates: []tls.Certificate{cert}})
						}
						r := bufio.NewReader(over)
						for {
							req, err := http.ReadRequest(r)
							if err != nil {
								return
							}
							io.Copy(io.Discard, req.Body)
							c.server.requests.Add(1)
							cork.on = req.Method == "GET" && spoil == nil
							io.WriteString(over, createdOK)
							if req.Method != "GET" {
								continue
							}
							if spoil == nil {
								io.WriteString(over, okEmpty)
								cork.pull()
							} else {
								time.Sleep(20 * time.Millisecond)
								spoil(c, over)
								time.Sleep(20 * time.Millisecond)
							}
							close(spoiled)
						}
					})
					url := s.url
					if secure {
						url = strings.Replace(url, "http:", "https:", 1)
					}
					c := newClient(t, url, func(c *Config) { c.RootCAs = roots })
					do(t, c, list())
					<-spoiled
					call := insert()
					permits := 0
					call.Permit = func() error { permits++; return nil }
					change(call)
					a := do(t, c, call)
					if permits > 1 || permits == 1 != (call.Permit != nil) || s.requests.Load() != 2 || s.accepted.Load() != 2 || a.Status != 201 || a.Unsent {
						t.Errorf("%d permits, %d requests, %d connections, answer %+v", permits, s.requests.Load(), s.accepted.Load(), a)
					}
				})
			}
		}
	}
}

// A refusal doesn't use up the kept connections.
func TestRefusalCostsOneConnection(t *testing.T) {
	t.Parallel()
	var barrier atomic.Pointer[sync.WaitGroup]
	s := listen(t, func(c *rawConn) {
		for {
			if _, _, err := c.request(); err != nil {
				return
			}
			all := barrier.Load()
			all.Done()
			all.Wait()
			c.say(okEmpty)
		}
	})
	c := newClient(t, s.url)
	together := func(n int) {
		all := new(sync.WaitGroup)
		all.Add(n)
		barrier.Store(all)
		var calls sync.WaitGroup
		for range n {
			calls.Go(func() {
				if a := do(t, c, list()); a.Status != 200 {
					t.Errorf("%+v", a)
				}
			})
		}
		calls.Wait()
	}
	together(4)
	call := insert()
	call.Body, call.Permit = nil, func() error { return errors.New("no") }
	if a := do(t, c, call); !a.Unsent {
		t.Errorf("%+v", a)
	}
	together(3)
	if s.accepted.Load() != 4 {
		t.Errorf("%d connections, want 4", s.accepted.Load())
	}
}

// Row F37: the server closes before reading anything.
func TestCloseBeforeReading(t *testing.T) {
	t.Parallel()
	s := listen(t, func(c *rawConn) { c.reset() })
	a := do(t, newClient(t, s.url), insert())
	if a.Status != 0 || a.Err == nil || s.requests.Load() != 0 {
		t.Errorf("answer %+v", a)
	}
}

func TestPermit(t *testing.T) {
	t.Parallel()
	denied := errors.New("the lease is over")
	for name, change := range map[string]func(*Call){
		"insert":             func(*Call) {},
		"empty body":         func(c *Call) { c.Body = nil },
		"function by GET":    func(c *Call) { c.Method, c.Body = "GET", nil },
		"header over buffer": func(c *Call) { c.Headers = []envelope.Header{{Name: "X", Value: strings.Repeat("x", 40<<10)}} },
		"large body":         func(c *Call) { c.Body = make([]byte, 300<<10) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := listen(t, func(c *rawConn) {
				for {
					if _, _, err := c.request(); err != nil {
						return
					}
					c.say(okEmpty)
				}
			})
			c := newClient(t, s.url)
			for warm := range 2 { // on a fresh connection, then on kept ones
				before := s.bytes.Load()
				call := insert()
				change(call)
				asked := 0
				call.Permit = func() error { asked++; return denied }
				a := do(t, c, call)
				if !a.Unsent || a.Err != denied || a.Status != 0 || asked != 1 {
					t.Errorf("asked %d times, answer %+v", asked, a)
				}
				if got := s.bytes.Load(); got != before {
					t.Errorf("%d bytes left", got-before)
				}
				if warm == 0 {
					if a := do(t, c, list()); a.Status != 200 {
						t.Fatalf("warm up: %+v", a)
					}
				}
			}
		})
	}
}

// A call whose context ends while Permit is asked isn't sent.
func TestContextEndsDuringPermit(t *testing.T) {
	t.Parallel()
	s := listen(t, func(c *rawConn) { c.request() })
	shutdown := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(context.Background())
	call := insert()
	var returned atomic.Bool
	call.Permit = func() error { cancel(shutdown); returned.Store(true); return nil }
	a := newClient(t, s.url).Do(ctx, call)
	if !a.Unsent || !errors.Is(a.Err, shutdown) || s.bytes.Load() != 0 || !returned.Load() {
		t.Errorf("answer %+v, %d bytes", a, s.bytes.Load())
	}
}

// "Which failures of a call may be repeated": no connection was had.
func TestUnsent(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := "http://" + l.Addr().String()
	l.Close()
	gone := errors.New("gone")
	ended, end := context.WithCancelCause(context.Background())
	end(gone)
	s := listen(t, func(c *rawConn) { c.request() })
	for name, row := range map[string]struct {
		ctx  context.Context
		url  string
		call func(*Call)
		err  error
	}{
		"connection refused":     {context.Background(), closed, nil, nil},
		"context ended before":   {ended, s.url, nil, gone},
		"header injection":       {context.Background(), s.url, func(c *Call) { c.Headers = []envelope.Header{{Name: "X", Value: "a\r\nb: c"}} }, ErrRequest},
		"path off /crm":          {context.Background(), s.url, func(c *Call) { c.Path = "/oauth/v2/token" }, ErrRequest},
		"path with a space":      {context.Background(), s.url, func(c *Call) { c.Path = "/crm/v8/Leads HTTP/1.1" }, ErrRequest},
		"query with a newline":   {context.Background(), s.url, func(c *Call) { c.RawQuery = "a=b\r\nX: y" }, ErrRequest},
		"path beyond ASCII":      {context.Background(), s.url, func(c *Call) { c.Path = "/crm/v8/Größe" }, ErrRequest},
		"path with a query":      {context.Background(), s.url, func(c *Call) { c.Path = "/crm/v8/Leads?a=b" }, ErrRequest},
		"bad method":             {context.Background(), s.url, func(c *Call) { c.Method = "PO ST" }, ErrRequest},
		"unknown data centre":    {context.Background(), s.url, func(c *Call) { c.Location = "xx" }, ErrRequest},
		"unknown environment":    {context.Background(), s.url, func(c *Call) { c.Environment = "" }, ErrRequest},
		"no token":               {context.Background(), s.url, func(c *Call) { c.Token = secret.Text{} }, ErrRequest},
		"token with line breaks": {context.Background(), s.url, func(c *Call) { c.Token = secret.New(markedToken + "\r\nX: y") }, ErrRequest},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			call := insert()
			if row.call != nil {
				row.call(call)
			}
			a := newClient(t, row.url).Do(row.ctx, call)
			if !a.Unsent || a.Err == nil || a.Status != 0 || row.err != nil && !errors.Is(a.Err, row.err) {
				t.Errorf("answer %+v", a)
			}
			if strings.Contains(a.Err.Error(), "MARKED") {
				t.Errorf("error shows a secret: %v", a.Err)
			}
		})
	}
	t.Cleanup(func() {
		if s.bytes.Load() != 0 {
			t.Errorf("%d bytes left", s.bytes.Load())
		}
	})
}

// What is the transport's or the worker's to set stops a call, in whatever case.
func TestReservedHeaders(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"authorization", "Proxy-Authorization", "COOKIE", "host", "content-length", "Transfer-Encoding", "Connection", "Keep-Alive",
		"Proxy-Connection", "te", "Trailer", "Upgrade", "expect", "idempotency-KEY", "X-Idempotency-Key",
	} {
		call := insert()
		call.Headers = []envelope.Header{{Name: name, Value: "1"}}
		if a := do(t, newClient(t, "http://127.0.0.1:1"), call); !a.Unsent || !errors.Is(a.Err, ErrRequest) {
			t.Errorf("%s: answer %+v", name, a)
		}
	}
}

// A connection on which writing failed isn't kept, whatever was answered.
func TestNotKeptAfterAFailedWrite(t *testing.T) {
	t.Parallel()
	for _, size := range []int{10, 300 << 10} {
		failing := errors.New("broken pipe")
		k := newKept(&script{stubConn{n: 5, err: failing, cut: make(chan struct{})}, strings.NewReader(createdOK)}, place{})
		var r reply
		trip := &trip{head: []byte("POST"), body: make([]byte, size), limit: 1 << 10}
		again, err := k.exchange(t.Context(), trip, &r)
		if again || err != nil || r.status != 201 || string(r.body) != "{}" || !trip.left {
			t.Errorf("%d bytes: again %v, %v, status %d, left %v", size, again, err, r.status, trip.left)
		}
	}
}

// Unsent, in the cases that a real kernel rarely gives: the kernel takes n bytes
// of the request, then fails.
func TestWhatTheKernelTook(t *testing.T) {
	t.Parallel()
	failing := errors.New("broken pipe")
	for _, size := range []int{10, 300 << 10} {
		for n, unsent := range map[int]bool{0: true, 1: false} {
			c := newClient(t, "http://127.0.0.1:1")
			where := place{"http", "127.0.0.1:1"}
			c.pool.put(newKept(&stubConn{n: n, err: failing, cut: make(chan struct{})}, where))
			call := insert()
			permits := 0
			call.Body, call.Permit = make([]byte, size), func() error { permits++; return nil }
			a := do(t, c, call)
			if a.Unsent != unsent || a.Err == nil || a.Status != 0 || permits != 1 {
				t.Errorf("%d bytes of %d taken: %d permits, answer %+v", n, size, permits, a)
			}
		}
	}
}

// A real kernel that takes a request in pieces, and one that takes nothing.
func TestRealKernel(t *testing.T) {
	t.Parallel()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	where := place{"http", listener.Addr().String()}
	connect := func() (client, server *net.TCPConn) {
		t.Helper()
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", where.host)
		if err != nil {
			t.Fatal(err)
		}
		s, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = c.Close(), s.Close() })
		client, server = c.(*net.TCPConn), s.(*net.TCPConn)
		return client, server
	}

	// The buffer does not hold the request: what the kernel doesn't take at once is
	// written when there is room, and once.
	client, server := connect()
	if err := client.SetWriteBuffer(1024); err != nil {
		t.Fatal(err)
	}
	k := newKept(client, where)
	head, body := []byte("POST /crm/v8/Leads HTTP/1.1\r\n\r\n"), bytes.Repeat([]byte("x"), 1<<20)
	arrived := make(chan []byte, 1)
	go func() {
		got := make([]byte, len(head)+len(body))
		n, _ := io.ReadFull(server, got)
		arrived <- got[:n]
		_, _ = server.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
	}()
	if err := k.send(head, body); err != nil {
		t.Error(err)
	}
	var r reply
	if again, err := k.read(&r, 1<<20); err != nil || !again || r.status != 204 {
		t.Errorf("again %v, status %d, %v", again, r.status, err)
	}
	if got := <-arrived; !bytes.Equal(got, append(head, body...)) || k.out.Load() != int64(len(got)) {
		t.Errorf("%d bytes arrived, %d were counted", len(got), k.out.Load())
	}

	// This end may write no more.
	client, _ = connect()
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, "http://"+where.host)
	c.pool.put(newKept(client, where))
	if a := do(t, c, insert()); !a.Unsent || !errors.Is(a.Err, syscall.EPIPE) || !strings.Contains(a.Err.Error(), "write tcp 127.0.0.1:") {
		t.Errorf("answer %+v", a)
	}
}

// stubConn takes n bytes, then fails; reading waits to be cut.
type stubConn struct {
	net.Conn
	n    int
	err  error
	once sync.Once
	cut  chan struct{}
}

func (c *stubConn) Write([]byte) (int, error) { return c.n, c.err }
func (c *stubConn) Read([]byte) (int, error)  { <-c.cut; return 0, os.ErrDeadlineExceeded }
func (c *stubConn) Close() error              { return nil }

func (c *stubConn) SetDeadline(time.Time) error { c.once.Do(func() { close(c.cut) }); return nil }

func (c *stubConn) SetReadDeadline(t time.Time) error { return c.SetDeadline(t) }
