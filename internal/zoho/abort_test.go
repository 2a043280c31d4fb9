//go:build unix

package zoho

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"zoho-worker/internal/secret"
)

// deaf listens and reads nothing until told to, with little room for what comes.
func deaf(t *testing.T, handle func(c net.Conn)) net.Listener {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4<<10) })
	}}
	l, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		handle(c)
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l
}

// What a call has left with the kernel when it ends doesn't go on to Zoho then.
func TestNothingLeavesAfterTheEnd(t *testing.T) {
	t.Parallel()
	ended, arrived := make(chan struct{}), make(chan int64, 1)
	l := deaf(t, func(c net.Conn) {
		<-ended
		n, _ := io.Copy(io.Discard, c)
		arrived <- n
	})
	c := newClient(t, "http://"+l.Addr().String(), func(c *Config) { c.CallTimeout = 2 * time.Second })
	call := insert()
	call.Body = make([]byte, 128<<10)
	a := do(t, c, call)
	close(ended)
	if !errors.Is(a.Err, ErrCallTimeout) || a.Unsent {
		t.Errorf("answer %+v", a)
	}
	if n := <-arrived; n >= int64(len(call.Body)) {
		t.Errorf("all %d bytes arrived after the call had ended", n)
	}
}

// Nor does it when the process is killed.
func TestNothingLeavesAfterAKill(t *testing.T) {
	if url := os.Getenv("ZOHO_TEST_KILL"); url != "" {
		call := insert()
		call.Body = make([]byte, 15<<10)
		newClient(t, url, func(c *Config) { c.CallTimeout = time.Minute }).Do(context.Background(), call)
		return
	}
	t.Parallel()
	var child *exec.Cmd
	started, arrived := make(chan struct{}), make(chan int64, 1)
	l := deaf(t, func(c net.Conn) {
		_, _ = io.ReadFull(c, make([]byte, 1)) // the kernel took the request, in one piece
		<-started
		_ = child.Process.Kill()
		_ = child.Wait()
		n, _ := io.Copy(io.Discard, c)
		arrived <- n
	})
	child = exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), "ZOHO_TEST_KILL=http://"+l.Addr().String())
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	close(started)
	if n := <-arrived; n >= 15<<10 {
		t.Errorf("all %d bytes arrived after the kill", n)
	}
}

// A server that reads nothing doesn't hold a call up beyond its time.
func TestDeafTLS(t *testing.T) {
	t.Parallel()
	roots, cert := authority(t, time.Now().Add(time.Hour))
	ended := make(chan struct{})
	l := deaf(t, func(c net.Conn) {
		_ = tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}}).Handshake()
		<-ended
	})
	c := newClient(t, "https://"+l.Addr().String(), func(c *Config) { c.RootCAs, c.CallTimeout = roots, 2*time.Second })
	call := insert()
	call.Body = []byte(strings.Repeat("x", 32<<20))
	a := do(t, c, call)
	close(ended)
	if !errors.Is(a.Err, ErrCallTimeout) || a.Unsent || a.Took >= c.config.CallTimeout+lastWords {
		t.Errorf("answer %+v", a)
	}
}

// That the writing is ended for want of an answer is not why there is none.
func TestWhyThereIsNoAnswer(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		say  string
		want error
	}{
		"closed":      {"HTTP/1.1 201 Cre", ErrClosed},
		"not HTTP":    {markedBody + "\r\n\r\n", ErrBroken},
		"in the body": {"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\n{", ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{})
			l := deaf(t, func(c net.Conn) {
				c.Read(make([]byte, 1))
				io.WriteString(c, row.say)
				_ = c.(*net.TCPConn).CloseWrite()
				<-ended
			})
			call := insert()
			call.Body = make([]byte, 32<<20)
			a := do(t, newClient(t, "http://"+l.Addr().String()), call)
			close(ended)
			if !errors.Is(a.Err, row.want) || a.Unsent {
				t.Errorf("answer %+v", a)
			}
		})
	}
}

// Of the accounts server, too, it is told whether anything of a request left.
func TestRefreshUnsent(t *testing.T) {
	t.Parallel()
	roots, _ := authority(t, time.Now().Add(time.Hour))
	for name, row := range map[string]struct {
		scheme string
		unsent bool
	}{"never shakes hands": {"https://", true}, "never answers": {"http://", false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ended := make(chan struct{})
			l := deaf(t, func(net.Conn) { <-ended })
			c := newClient(t, row.scheme+l.Addr().String(), func(c *Config) { c.RootCAs, c.TokenTimeout = roots, 2*time.Second })
			_, err := c.Refresh(context.Background(), "eu", secret.New("1000.REFRESH"))
			err2 := c.Revoke(context.Background(), "eu", secret.New("1000.REFRESH"))
			close(ended)
			for _, err := range []error{err, err2} {
				var e *Error
				if !errors.As(err, &e) || !errors.Is(err, ErrTokenTimeout) || e.Unsent != row.unsent {
					t.Errorf("%+v, unsent %v", err, e.Unsent)
				}
			}
		})
	}
}
