// Package redistest gives tests a Redis that they may break: a redis-server of
// their own on a random port where one is installed, else the server at
// REDIS_URL, else miniredis in the process.
//
// It is not for production and not for measuring: nothing is stored on disk.
//
// With REQUIRE_REDIS=1 in the environment miniredis will not do, and its use is
// a failure: a pipeline that is meant to test with a real Redis notices when it
// has none.
package redistest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
)

// Server is a Redis for one test. Its URL stays the same through Kill and Restart.
type Server struct {
	URL string
	// Real is false for miniredis, where time passes only by Pass.
	Real bool

	tb   testing.TB
	port int
	mini *miniredis.Miniredis

	mu      sync.Mutex
	process *process // nil while it is killed, or none of ours
}

// Start returns a Redis that ends with the test, empty, and logs which one it is.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{tb: tb}
	path, err := exec.LookPath("redis-server")
	switch {
	case err == nil:
		s.Real = true
		s.start(path)
		s.URL = "redis://127.0.0.1:" + strconv.Itoa(s.port)
		tb.Logf("redistest: %s at %s", path, s.URL)
	case os.Getenv("REDIS_URL") != "":
		s.Real, s.URL = true, os.Getenv("REDIS_URL")
		tb.Log("redistest: the server at REDIS_URL")
		s.FlushAll()
	case os.Getenv("REQUIRE_REDIS") == "1":
		tb.Fatal("redistest: REQUIRE_REDIS=1, but there is no redis-server in PATH and no REDIS_URL")
	default:
		s.mini = miniredis.NewMiniRedis()
		if err := s.mini.Start(); err != nil {
			tb.Fatalf("redistest: start miniredis: %v", err)
		}
		s.URL = "redis://" + s.mini.Addr()
		tb.Logf("redistest: miniredis at %s (no redis-server in PATH, no REDIS_URL)", s.URL)
	}
	tb.Cleanup(s.stop)
	return s
}

// Mini returns the URL of a miniredis, for what a test needs to be quick or
// needs Pass for, whatever else is installed.
func Mini(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{tb: tb, mini: miniredis.NewMiniRedis()}
	if err := s.mini.Start(); err != nil {
		tb.Fatalf("redistest: start miniredis: %v", err)
	}
	s.URL = "redis://" + s.mini.Addr()
	tb.Cleanup(s.stop)
	return s
}

// Client returns a plain client for the test's own looks at the server. It
// skips no error and ends with the test.
func (s *Server) Client() *redis.Client {
	s.tb.Helper()
	o, err := redis.ParseURL(s.URL)
	if err != nil {
		s.tb.Fatalf("redistest: %v", err)
	}
	client := redis.NewClient(o)
	s.tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Kill ends the server at once, with everything in it (SIGKILL). A test that
// was given REDIS_URL is skipped: that server is not ours.
func (s *Server) Kill() {
	s.tb.Helper()
	if s.mini != nil {
		s.mini.Close()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.port == 0 {
		s.tb.Skip("redistest: the server at REDIS_URL is not ours to kill")
	}
	if s.process != nil {
		s.process.kill()
		s.process = nil
	}
}

// Restart starts a killed server again at the same address, empty.
func (s *Server) Restart() {
	s.tb.Helper()
	if s.mini != nil {
		if err := s.mini.Restart(); err != nil {
			s.tb.Fatalf("redistest: restart: %v", err)
		}
		s.mini.FlushAll()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path, err := exec.LookPath("redis-server")
	if err == nil && s.process == nil {
		s.process, err = launch(path, s.port)
	}
	if err != nil {
		s.tb.Fatalf("redistest: restart: %v", err)
	}
}

// FlushAll empties the server.
func (s *Server) FlushAll() {
	s.tb.Helper()
	if s.mini != nil {
		s.mini.FlushAll()
		return
	}
	client := s.Client()
	if err := client.FlushAll(context.Background()).Err(); err != nil {
		s.tb.Fatalf("redistest: FLUSHALL: %v", err)
	}
}

// Pass lets time pass for the server's keys. A real server's time can't be
// moved: there it waits.
func (s *Server) Pass(d time.Duration) {
	if s.mini != nil {
		s.mini.FastForward(d)
		return
	}
	time.Sleep(d)
}

func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mini != nil {
		s.mini.Close()
	}
	if s.process != nil {
		s.process.kill()
		s.process = nil
	}
}

// start finds a free port, which another process may take first: then it finds
// another one.
func (s *Server) start(path string) {
	s.tb.Helper()
	var err error
	for range 5 {
		if s.port, err = freePort(); err != nil {
			continue
		}
		if s.process, err = launch(path, s.port); err == nil {
			return
		}
	}
	s.tb.Fatalf("redistest: start %s: %v", path, err)
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// process is a redis-server under a shell that kills it when its standard input
// ends: so no server outlives a test process, however that ends.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

const script = `"$@" </dev/null & pid=$!; read _; kill -9 $pid; wait $pid`

func launch(path string, port int) (*process, error) {
	cmd := exec.Command("/bin/sh", "-c", script, "sh", path,
		"--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, stdin: stdin}
	ready := make(chan error, 1)
	go func() {
		said := bufio.NewScanner(stdout)
		for said.Scan() {
			if bytes.Contains(said.Bytes(), []byte("Ready to accept connections")) {
				ready <- nil
				_, _ = io.Copy(io.Discard, stdout)
				return
			}
		}
		ready <- errors.New("it ended at once")
	}()
	select {
	case err = <-ready:
	case <-time.After(10 * time.Second):
		err = errors.New("it is not ready after 10 s")
	}
	if err != nil {
		p.kill()
		return nil, err
	}
	return p, nil
}

// kill returns when the process is gone and its port is free.
func (p *process) kill() {
	_ = p.stdin.Close()
	_ = p.cmd.Wait()
}
