package zoho

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"zoho-worker/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Marks that no error text may hold.
const (
	markedToken  = "1000.MARKEDTOKEN.a7f3"
	markedSecret = "MARKEDSECRETb81c"
	markedBody   = "MARKEDBODYc92d"
)

// newClient returns a client whose calls all go to api, unless change says otherwise.
func newClient(t testing.TB, api string, change ...func(*Config)) *Client {
	t.Helper()
	config := Config{
		ClientID: "1000.CLIENT", ClientSecret: secret.New(markedSecret),
		APIURL: api, AccountsURL: api, CallTimeout: 5 * time.Second, TokenTimeout: 5 * time.Second,
	}
	for _, f := range change {
		f(&config)
	}
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func serve(t testing.TB, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// insert is a call that must not be sent twice.
func insert() *Call {
	return &Call{
		Location: "eu", Environment: Production, Token: secret.New(markedToken), Method: "POST", Path: "/crm/v8/Leads",
		ContentType: "application/json", Body: []byte(`{"data":[{"Last_Name":"Doe"}]}`),
	}
}

func list() *Call {
	return &Call{
		Location: "eu", Environment: Production, Token: secret.New(markedToken), Method: "GET", Path: "/crm/v8/Leads",
		RawQuery: "fields=id",
	}
}

// rawServer accepts connections and hands each to handle, which gets requests
// whole and counted. It closes the connection when handle returns.
type rawServer struct {
	url      string
	listener net.Listener
	requests atomic.Int64 // read to the last byte of the body
	accepted atomic.Int64
	bytes    atomic.Int64 // read at all
	mu       sync.Mutex
	heads    []string // request lines with headers, as they came
}

type rawConn struct {
	*net.TCPConn
	server *rawServer
	r      *bufio.Reader
	record bytes.Buffer
}

func (c *rawConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	c.server.bytes.Add(int64(n))
	c.record.Write(p[:n])
	return n, err
}

// request reads one request and its body.
func (c *rawConn) request() (*http.Request, []byte, error) {
	r, err := http.ReadRequest(c.r)
	if err != nil {
		return nil, nil, err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, nil, err
	}
	head, _, _ := bytes.Cut(c.record.Bytes(), []byte("\r\n\r\n"))
	c.server.mu.Lock()
	c.server.heads = append(c.server.heads, string(head))
	c.server.mu.Unlock()
	c.record.Reset()
	c.server.requests.Add(1)
	return r, body, nil
}

func (c *rawConn) reset() { c.SetLinger(0); c.Close() }

func (c *rawConn) say(s string) { io.WriteString(c.TCPConn, s) }

const (
	okEmpty   = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
	createdOK = "HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
)

func listen(t testing.TB, handle func(c *rawConn)) *rawServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawServer{listener: l, url: "http://" + l.Addr().String()}
	var wg sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.accepted.Add(1)
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				rc := &rawConn{TCPConn: c.(*net.TCPConn), server: s}
				rc.r = bufio.NewReader(rc)
				handle(rc)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

func do(t testing.TB, c *Client, call *Call) *Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return c.Do(ctx, call)
}

func header(a *Answer, name string) string {
	for _, h := range a.Headers {
		if h.Name == name {
			return h.Value
		}
	}
	return ""
}
