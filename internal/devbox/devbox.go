// Package devbox is everything a worker needs around it, in one process: a real
// nats-server with JetStream on disk, Redis, and the Zoho simulator with a
// ready user. `worker dev` and the tests run on it.
//
// It is not for production: its Redis is an imitation unless a real one's
// address is given, its Zoho a simulator, and its NATS has no authentication.
//
// Invariant: what it started is stopped by Close, and a temporary directory goes.
package devbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/nats-io/nats-server/v2/server"

	"zoho-worker/internal/zoho/zohotest"
)

// Options say where things are; the zero value takes free ports on loopback,
// a temporary directory and the in-process Redis.
type Options struct {
	NATSAddr string // host:port; port 0: a free one
	ZohoAddr string // host:port; port 0: a free one
	DataDir  string // of JetStream; empty: temporary
	RedisURL string // of a real server; empty: in process
	// Zoho's options; its own address is filled in where APIURL is empty.
	Zoho zohotest.Options
}

// Box is a running box.
type Box struct {
	NATSURL  string
	RedisURL string
	ZohoURL  string
	DataDir  string
	Zoho     *zohotest.Server
	NATS     *server.Server

	nats    server.Options
	closers []func()
}

// The org and the user that every box has.
const (
	OrgID  = "770000001"
	UserID = "5725767000000411001"
)

// TakenError says that an address can't be listened on. Role says for what.
type TakenError struct {
	Role, Addr string
	Err        error
}

// Error implements error.
func (e *TakenError) Error() string {
	return fmt.Sprintf("%s can't listen on %s: %v", e.Role, e.Addr, e.Err)
}

// Unwrap returns the operating system's error.
func (e *TakenError) Unwrap() error { return e.Err }

// The roles of a TakenError.
const (
	RoleNATS = "nats-server"
	RoleZoho = "the Zoho simulator"
)

// Start starts a box. Close it.
func Start(o Options) (_ *Box, err error) {
	b := &Box{DataDir: o.DataDir}
	defer func() {
		if err != nil {
			b.Close()
		}
	}()
	if o.DataDir == "" {
		if b.DataDir, err = os.MkdirTemp("", "zoho-worker-"); err != nil {
			return nil, err
		}
		b.onClose(func() { _ = os.RemoveAll(b.DataDir) })
	} else if err := writable(o.DataDir); err != nil {
		return nil, fmt.Errorf("--data-dir %s: %w: choose a directory that can be written", o.DataDir, err)
	}
	if err := b.startNATS(o.NATSAddr); err != nil {
		return nil, err
	}
	b.RedisURL = o.RedisURL
	if b.RedisURL == "" {
		if err := b.startRedis(); err != nil {
			return nil, err
		}
	}
	return b, b.startZoho(o)
}

// writable makes the directory, if it isn't there, and writes into it once: the
// server would say only in its log why it can't.
func writable(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	trial, err := os.CreateTemp(dir, "trial-")
	if err != nil {
		return err
	}
	_ = trial.Close()
	return os.Remove(trial.Name())
}

func (b *Box) onClose(f func()) { b.closers = append(b.closers, f) }

// Close stops everything, in reverse. Closing twice is fine.
func (b *Box) Close() {
	for len(b.closers) > 0 {
		last := b.closers[len(b.closers)-1]
		b.closers = b.closers[:len(b.closers)-1]
		last()
	}
}

func (b *Box) startNATS(addr string) error {
	host, port, err := split(addr)
	if err != nil {
		return &TakenError{Role: RoleNATS, Addr: addr, Err: err}
	}
	// The server itself would end the process if the port is taken.
	probe, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return &TakenError{Role: RoleNATS, Addr: addr, Err: err}
	}
	_ = probe.Close()
	if port == 0 {
		port = server.RANDOM_PORT
	}
	b.nats = server.Options{
		ServerName: "devbox", Host: host, Port: port, NoSigs: true, NoLog: true,
		JetStream: true, StoreDir: filepath.Join(b.DataDir, "nats"),
	}
	b.onClose(b.stopNATS)
	return b.runNATS()
}

func (b *Box) runNATS() error {
	options := b.nats
	ns, err := server.NewServer(&options)
	if err != nil {
		return fmt.Errorf("start nats-server: %w", err)
	}
	died := make(deaths, 1)
	ns.SetLoggerV2(died, false, false, false)
	ns.Start()
	b.NATS = ns
	for begun := time.Now(); !ns.ReadyForConnections(100 * time.Millisecond); {
		select {
		case why := <-died:
			return errors.New("start nats-server: " + why)
		default:
		}
		if time.Since(begun) > 15*time.Second {
			return errors.New("start nats-server: not ready after 15 s")
		}
	}
	b.nats.Port = options.Port
	b.NATSURL = ns.ClientURL()
	return nil
}

// deaths is the server's log, of which only the first thing that it dies of is kept.
type deaths chan string

func (d deaths) Fatalf(format string, args ...any) {
	select {
	case d <- fmt.Sprintf(format, args...):
	default:
	}
}
func (deaths) Noticef(string, ...any) {}
func (deaths) Warnf(string, ...any)   {}
func (deaths) Errorf(string, ...any)  {}
func (deaths) Debugf(string, ...any)  {}
func (deaths) Tracef(string, ...any)  {}

func (b *Box) stopNATS() {
	if b.NATS != nil {
		b.NATS.Shutdown()
		b.NATS.WaitForShutdown()
	}
}

// RestartNATS stops the nats-server and starts it again with what it had
// stored, at the same address. It must not run beside another method.
func (b *Box) RestartNATS() error {
	b.stopNATS()
	return b.runNATS()
}

// startRedis starts the imitation, whose keys expire only when its clock is moved.
func (b *Box) startRedis() error {
	redis := miniredis.NewMiniRedis()
	if err := redis.Start(); err != nil {
		return fmt.Errorf("start in-process Redis: %w", err)
	}
	const tick = 50 * time.Millisecond
	ctx, stop := context.WithCancel(context.Background())
	var ticking sync.WaitGroup
	ticking.Go(func() {
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
				redis.FastForward(tick)
			}
		}
	})
	b.onClose(func() {
		stop()
		ticking.Wait()
		redis.Close()
	})
	b.RedisURL = "redis://" + redis.Addr()
	return nil
}

func (b *Box) startZoho(o Options) error {
	host, port, err := split(o.ZohoAddr)
	if err != nil {
		return &TakenError{Role: RoleZoho, Addr: o.ZohoAddr, Err: err}
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return &TakenError{Role: RoleZoho, Addr: o.ZohoAddr, Err: err}
	}
	b.ZohoURL = "http://" + listener.Addr().String()
	o.Zoho.AccountsURL, o.Zoho.APIURL = b.ZohoURL, cmp.Or(o.Zoho.APIURL, b.ZohoURL)
	b.Zoho = zohotest.New(o.Zoho)
	b.Zoho.AddOrg(zohotest.Org{ID: OrgID, Name: "Demo Ltd", Concurrency: 10, SubConcurrency: 10})
	b.Zoho.AddUser(zohotest.User{ID: UserID, Email: "demo@example.com", Name: "Demo User", OrgID: OrgID})
	web := &http.Server{Handler: b.Zoho, ReadHeaderTimeout: 10 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = web.Serve(listener) })
	b.onClose(func() {
		b.Zoho.Close()
		_ = web.Close()
		serving.Wait()
	})
	return nil
}

func split(addr string) (host string, port int, err error) {
	if addr == "" {
		return "127.0.0.1", 0, nil
	}
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("port %q is no number from 0 to 65535", text)
	}
	return host, port, nil
}
