// Package natstest gives tests of the record stores a real nats-server in the
// process, with JetStream on disk in a directory of the test.
//
// It is not for production: package devbox is the box for development.
package natstest

import (
	"context"
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
}

// Start returns a running server that ends with the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{tb: tb, options: server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: tb.TempDir(), NoLog: true, NoSigs: true,
	}}
	s.start()
	tb.Cleanup(s.Stop)
	return s
}

func (s *Server) start() {
	s.tb.Helper()
	options := s.options
	running, err := server.NewServer(&options)
	if err != nil {
		s.tb.Fatalf("natstest: %v", err)
	}
	running.Start()
	if !running.ReadyForConnections(10 * time.Second) {
		s.tb.Fatal("natstest: not ready after 10 s")
	}
	s.options.Port = options.Port
	s.server = running
}

// Stop ends the server; what it stored stays.
func (s *Server) Stop() {
	s.server.Shutdown()
	s.server.WaitForShutdown()
}

// Restart ends the server and starts it again with what it stored, at the same address.
func (s *Server) Restart() {
	s.tb.Helper()
	s.Stop()
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
