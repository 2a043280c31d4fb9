package app

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// pipes is a listener whose connections are pipes: they have no buffers, and their
// deadlines go by the test's clock.
type pipes struct {
	dialled chan net.Conn
	closed  chan struct{}
	open    atomic.Int64 // connections that the server has
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.dialled:
		p.open.Add(1)
		return &counted{Conn: conn, open: &p.open}, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { close(p.closed); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.dialled <- server
	return client
}

// counted is a connection that is counted until it is closed.
type counted struct {
	net.Conn
	open *atomic.Int64
	once atomic.Bool
}

func (c *counted) Close() error {
	if c.once.CompareAndSwap(false, true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// serve serves a worker's HTTP, without anything behind it.
func serve(t *testing.T, logger *slog.Logger, console bool, pages http.Handler) *pipes {
	t.Helper()
	w := &Worker{failed: make(chan error, 1), health: newHealth(logger)}
	if pages != nil {
		w.pages.Store(&pages)
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "large", Help: strings.Repeat("x", 1<<20)}))
	p := &pipes{dialled: make(chan net.Conn), closed: make(chan struct{})}
	w.serveHTTP(p, metrics, console)
	t.Cleanup(func() {
		w.Stop(context.WithoutCancel(t.Context()))
		time.Sleep(time.Second) // net/http lingers on a connection that it refused
	})
	return p
}

// However many connections are opened, and however little is done with them: each ends.
func TestSlowClientsLetGo(t *testing.T) {
	t.Parallel()
	drip := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			for i := range text {
				if _, err := io.WriteString(conn, text[i:i+1]); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		}
	}
	for name, client := range map[string]func(net.Conn){
		"says nothing":     func(net.Conn) {},
		"drips its header": drip("GET /healthz HTTP/1.1\r\nHost: worker\r\nX-Padding: " + strings.Repeat("x", 1000)),
		"withholds its body": func(conn net.Conn) {
			_, _ = io.WriteString(conn, "POST /metrics HTTP/1.1\r\nHost: worker\r\nContent-Length: 10\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
		},
		"drips its body": drip("POST /metrics HTTP/1.1\r\nHost: worker\r\nContent-Length: 1000\r\n\r\n" + strings.Repeat("x", 1000)),
		"reads nothing":  func(conn net.Conn) { _, _ = io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: worker\r\n\r\n") },
		"comes and goes quiet": func(conn net.Conn) {
			_, _ = io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: worker\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := serve(t, slog.New(slog.DiscardHandler), false, nil)
				const n = 50
				for range n {
					conn := p.dial()
					defer conn.Close()
					go client(conn)
				}
				synctest.Wait()
				if open := p.open.Load(); open != n {
					t.Fatalf("%d of %d connections are open at first", open, n)
				}
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				if open := p.open.Load(); open != 0 {
					t.Errorf("%d of %d connections are still open", open, n)
				}
			})
		})
	}
}

// A header larger than any browser's is refused before it is all read.
func TestLargeHeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		conn := serve(t, slog.New(slog.DiscardHandler), false, nil).dial()
		defer conn.Close()
		sent := make(chan int64, 1)
		go func() {
			n, _ := io.Copy(conn, io.MultiReader(strings.NewReader("GET /healthz HTTP/1.1\r\nHost: worker\r\nCookie: "), endless{}))
			sent <- n
		}()
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("status %d", answer.StatusCode)
		}
		_ = conn.Close()
		if n := <-sent; n > 128<<10 {
			t.Errorf("%d bytes of a header were read", n)
		}
	})
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// What net/http itself has to say goes where all lines go, as one line.
func TestHTTPServerLogs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		p := serve(t, slog.New(slog.NewJSONHandler(&log, nil)), true, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a page that panics") }))
		conn := p.dial()
		defer conn.Close()
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: worker\r\n\r\n")
		_, _ = io.Copy(io.Discard, conn)
		synctest.Wait()
		if lines := strings.Count(log.String(), "\n"); lines != 1 || !strings.Contains(log.String(), "a page that panics") || !strings.HasPrefix(log.String(), "{") {
			t.Errorf("%d lines: %.300s", lines, log.String())
		}
	})
}

// Whoever comes while the worker starts is told so, and led on; where there is to be no
// console there is nothing.
func TestConsoleOfWorkerThatStarts(t *testing.T) {
	t.Parallel()
	for console, want := range map[bool]int{true: http.StatusServiceUnavailable, false: http.StatusNotFound} {
		synctest.Test(t, func(t *testing.T) {
			conn := serve(t, slog.New(slog.DiscardHandler), console, nil).dial()
			defer conn.Close()
			go fmt.Fprint(conn, "GET /oauth/callback?state=s&code=c HTTP/1.1\r\nHost: worker\r\n\r\n")
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if answer.StatusCode != want || (answer.Header.Get("Refresh") != "") != console {
				t.Errorf("with a console %v: %d %v", console, answer.StatusCode, answer.Header)
			}
		})
	}
}
