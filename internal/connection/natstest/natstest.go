// Package natstest gives tests a real nats-server in the process, with JetStream on
// disk in a directory of the test.
//
// It is not for production: package devbox is the box for development.
package natstest

import (
	"context"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Server is a nats-server for one test.
type Server struct {
	tb      testing.TB
	options server.Options
	server  *server.Server
	saved   string // a copy of what it stored
	mu      sync.Mutex
	conns   []*nats.Conn // that JetStream returned
}

// Run starts a nats-server with these options, on loopback, that ends with the test:
// on a free port and with a store of its own where they name none.
func Run(tb testing.TB, options *server.Options) *server.Server {
	tb.Helper()
	running := run(tb, options)
	tb.Cleanup(func() { end(running) })
	return running
}

func end(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

func run(tb testing.TB, options *server.Options) *server.Server {
	tb.Helper()
	options.Host, options.NoLog, options.NoSigs = "127.0.0.1", true, true
	if options.Port == 0 {
		options.Port = server.RANDOM_PORT
	}
	if options.JetStream && options.StoreDir == "" {
		options.StoreDir = tb.TempDir()
	}
	running, err := server.NewServer(options)
	if err != nil {
		tb.Fatalf("natstest: %v", err)
	}
	running.Start()
	if !running.ReadyForConnections(15 * time.Second) {
		end(running)
		tb.Fatal("natstest: not ready after 15 s")
	}
	return running
}

// Start returns a running server with JetStream that ends with the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{tb: tb, options: server.Options{JetStream: true, StoreDir: tb.TempDir()}}
	s.start()
	// One that was restarted ends no sooner than the test's clients do, either.
	tb.Cleanup(s.Stop)
	return s
}

func (s *Server) start() {
	s.tb.Helper()
	options := s.options
	s.server = run(s.tb, &options)
	s.options.Port = options.Port
	s.mu.Lock()
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	for _, conn := range conns {
		s.await(conn)
	}
}

// await waits until the connection is one to the server that runs now: only an answer
// shows that it is, for a while it doesn't know that the one before ended.
func (s *Server) await(conn *nats.Conn) {
	s.tb.Helper()
	for deadline := time.Now().Add(15 * time.Second); !conn.IsClosed(); time.Sleep(5 * time.Millisecond) {
		if _, err := conn.RTT(); err == nil {
			return
		} else if time.Now().After(deadline) {
			s.tb.Fatalf("natstest: not connected again after 15 s: %v", err)
		}
	}
}

// Stop ends the server; what it stored stays.
func (s *Server) Stop() { end(s.server) }

// Restart ends the server and starts it again with what it stored, at the same address,
// and waits for the connections that JetStream returned.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
	s.start()
}

// URL is where clients reach the server.
func (s *Server) URL() string { return s.server.ClientURL() }

// Save keeps what the server has stored by now, for Revert. It restarts the server.
func (s *Server) Save() {
	s.tb.Helper()
	s.Stop()
	s.saved = s.tb.TempDir()
	if err := os.CopyFS(s.saved, os.DirFS(s.options.StoreDir)); err != nil {
		s.tb.Fatalf("natstest: save: %v", err)
	}
	s.start()
}

// Revert restarts the server with what it had stored when it was saved: as after a
// power failure that took the last writes.
func (s *Server) Revert() {
	s.tb.Helper()
	s.Stop()
	if err := os.RemoveAll(s.options.StoreDir); err != nil {
		s.tb.Fatalf("natstest: revert: %v", err)
	}
	if err := os.CopyFS(s.options.StoreDir, os.DirFS(s.saved)); err != nil {
		s.tb.Fatalf("natstest: revert: %v", err)
	}
	s.start()
}

// JetStream returns a connection of its own, which ends with the test.
func (s *Server) JetStream() jetstream.JetStream {
	s.tb.Helper()
	conn, err := nats.Connect(s.server.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectBufSize(-1),
		nats.ReconnectWait(20*time.Millisecond), nats.ReconnectJitter(0, 0))
	if err != nil {
		s.tb.Fatalf("natstest: %v", err)
	}
	s.tb.Cleanup(conn.Close)
	s.mu.Lock()
	s.conns = append(s.conns, conn)
	s.mu.Unlock()
	js, err := jetstream.New(conn)
	if err != nil {
		s.tb.Fatalf("natstest: %v", err)
	}
	return js
}

// Create creates streams.
func (s *Server) Create(js jetstream.JetStream, streams ...jetstream.StreamConfig) {
	s.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, config := range streams {
		if _, err := js.CreateStream(ctx, config); err != nil {
			s.tb.Fatalf("natstest: create %s: %v", config.Name, err)
		}
	}
}
