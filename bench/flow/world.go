package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

// world is the servers, the simulator and the workers of one scenario.
type world struct {
	dir      string
	logLevel string
	zoho     *zohotest.Server
	zohoURL  string
	keys     secret.Text
	natsURL  string
	redis    string // its URL

	nc      *nats.Conn
	js      jetstream.JetStream
	stream  jetstream.Stream
	store   *connection.Store
	workers []*program

	cleanup []func()
	serial  serial
}

// binaries are built once.
type binaries struct{ worker, nats, redis string }

func build(dir, worker string) (*binaries, error) {
	b := &binaries{worker: worker, nats: filepath.Join(dir, "nats-server")}
	compile := func(out, pkg string, args ...string) error {
		cmd := exec.Command("go", append(append([]string{"build", "-trimpath", "-o", out}, args...), pkg)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if said, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w\n%s", pkg, err, said)
		}
		return nil
	}
	if b.worker == "" {
		b.worker = filepath.Join(dir, "worker")
		if err := compile(b.worker, "zoho-worker/cmd/worker", "-tags", "production,grpcnotrace"); err != nil {
			return nil, err
		}
	}
	if err := compile(b.nats, "github.com/nats-io/nats-server/v2"); err != nil {
		return nil, err
	}
	var err error
	if b.redis, err = exec.LookPath("redis-server"); err != nil {
		return nil, errors.New("redis-server is not on the PATH")
	}
	return b, nil
}

// newWorld starts everything but the workers.
func newWorld(ctx context.Context, dir, logLevel string, b *binaries) (w *world, err error) {
	w = &world{dir: dir, logLevel: logLevel, keys: secret.Generate()}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := w.startZoho(); err != nil {
		return nil, err
	}
	ctx, end := context.WithCancel(ctx)
	var servers []*program
	w.cleanup = append(w.cleanup, func() {
		end()
		gone(servers)
	})
	redisPort, err := freePort()
	if err != nil {
		return nil, err
	}
	w.redis = "redis://127.0.0.1:" + redisPort
	redis, err := w.launch(ctx, "redis", nil, b.redis, "--port", redisPort, "--bind", "127.0.0.1", "--save", "", "--dir", dir)
	if err != nil {
		return nil, err
	}
	servers = append(servers, redis)
	natsPort, err := freePort()
	if err != nil {
		return nil, err
	}
	w.natsURL = "nats://127.0.0.1:" + natsPort
	server, err := w.launch(ctx, "nats", nil, b.nats, "-a", "127.0.0.1", "-p", natsPort, "-js", "-sd", filepath.Join(dir, "jetstream"))
	if err != nil {
		return nil, err
	}
	servers = append(servers, server)
	return w, w.connect(ctx)
}

func (w *world) startZoho() error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	w.zohoURL = "http://" + listener.Addr().String()
	w.zoho = zohotest.New(zohotest.Options{AccountsURL: w.zohoURL, APIURL: w.zohoURL, CountOnly: true, Order: orderOf})
	web := &http.Server{Handler: w.zoho, ReadHeaderTimeout: 30 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = web.Serve(listener) }()
	w.cleanup = append(w.cleanup, func() {
		w.zoho.Close()
		_ = web.Close()
	})
	return nil
}

// orderOf reads the order that load.go puts into a request's headers.
func orderOf(c zohotest.Call) (key string, place int64) {
	order := c.Header.Get("X-Flow-Order") // connection/key/place
	i := strings.LastIndexByte(order, '/')
	if i < 0 {
		return "", 0
	}
	place, _ = strconv.ParseInt(order[i+1:], 10, 64)
	return order[:i], place
}

func (w *world) connect(ctx context.Context) (err error) {
	w.nc, err = nats.Connect(w.natsURL, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	if err != nil {
		return err
	}
	w.cleanup = append(w.cleanup, w.nc.Close)
	if w.js, err = jetstream.New(w.nc, jetstream.WithPublishAsyncMaxPending(2000)); err != nil {
		return err
	}
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if err = (consumer.Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(ctx, w.js); err == nil {
			break
		}
		if ctx.Err() != nil || time.Since(begun) > 30*time.Second {
			return fmt.Errorf("bring up the streams: %w", err)
		}
	}
	if w.stream, err = w.js.Stream(ctx, consumer.RequestStream); err != nil {
		return err
	}
	keyring, err := secret.ParseKeyring(w.keys.Reveal())
	if err != nil {
		return err
	}
	w.store, err = connection.Open(ctx, w.js, keyring, connection.Options{Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		w.cleanup = append(w.cleanup, w.store.Close)
	}
	return err
}

// addConnection adds a user of an org who has consented.
func (w *world) addConnection(ctx context.Context, name string, o *org) error {
	user := "9" + o.id + strconv.Itoa(len(o.connections))
	w.zoho.AddUser(zohotest.User{ID: user, OrgID: o.id, Email: name + "@example.com"})
	o.connections = append(o.connections, name)
	_, err := w.store.Add(ctx, connection.Connection{
		Name: name, Location: "us", OrgID: o.id, UserID: user, Edition: o.edition, Concurrency: o.places,
	}, secret.New(w.zoho.GrantRefreshToken(user)))
	return err
}

// startWorkers starts them and waits until each is ready.
func (w *world) startWorkers(ctx context.Context, path string, n, inFlight int) error {
	ctx, end := context.WithCancel(ctx)
	w.cleanup = append(w.cleanup, func() { // before the servers, which they need to stop
		end()
		gone(w.workers)
	})
	for i := range n {
		port, err := freePort()
		if err != nil {
			return err
		}
		p, err := w.launch(ctx, fmt.Sprintf("worker-%d", i+1), []string{
			"NATS_URL=" + w.natsURL, "REDIS_URL=" + w.redis, "ZOHO_CLIENT_ID=1000.FLOW", "ZOHO_CLIENT_SECRET=flow",
			"ZOHO_ACCOUNTS_URL=" + w.zohoURL, "ZOHO_API_URL=" + w.zohoURL, "ENCRYPTION_KEYS=" + w.keys.Reveal(),
			"HTTP_ADDR=127.0.0.1:" + port, "MAX_IN_FLIGHT=" + strconv.Itoa(inFlight), "LOG_LEVEL=" + w.logLevel, "LOG_FORMAT=json", "CALL_TIMEOUT=20s",
		}, path, "run")
		if err != nil {
			return err
		}
		w.workers = append(w.workers, p)
		for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			if resp, err := http.Get("http://127.0.0.1:" + port + "/readyz"); err == nil {
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					break
				}
			}
			if time.Since(begun) > time.Minute {
				said, _ := os.ReadFile(p.log)
				return fmt.Errorf("worker %d is not ready after a minute:\n%s", i+1, said[max(0, len(said)-2000):])
			}
		}
	}
	return nil
}

// gone waits for the end of processes.
func gone(list []*program) {
	for _, p := range list {
		<-p.gone
	}
}

func (w *world) close() {
	for i := len(w.cleanup) - 1; i >= 0; i-- {
		w.cleanup[i]()
	}
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port, l.Close()
}
