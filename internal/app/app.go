// Package app builds a worker from its configuration, starts it, and stops it:
// the one place that knows all parts.
//
// It decides nothing about requests. Invariants: what is started is stopped, in
// reverse, whatever fails in between; a worker that can't do its work is not
// ready; a part that dies ends the process, because a supervisor starts a whole
// one.
package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/event"
	"zoho-worker/internal/ledger"
	"zoho-worker/internal/lock"
	"zoho-worker/internal/register"
	"zoho-worker/internal/relay"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/token"
	"zoho-worker/internal/trace"
	"zoho-worker/internal/zoho"
)

// Version is set at build time: -ldflags "-X zoho-worker/internal/app.Version=…".
var Version = "0.1.0-dev"

// maxObject bounds a body_object: 100 MB is the most Zoho takes in one body.
const maxObject = 100 << 20

// objectRoom is how many bytes of them a worker has in memory, and a quarter of the
// runtime's memory limit where that is less. While one is sent it takes twice its size.
const objectRoom = 256 << 20

// Worker is a running worker.
type Worker struct {
	// HTTPAddr is where it serves /metrics, /healthz, /readyz and the console.
	HTTPAddr string
	// Connections are the connections it knows.
	Connections *connection.Store

	nc     *nats.Conn
	health *health
	pages  atomic.Pointer[http.Handler] // of the console, once there are any
	stop   []func(context.Context)
	failed chan error
	serves atomic.Bool
}

// Start builds and starts a worker. What it returns takes requests already. While
// NATS or a leader of JetStream is not there it waits, for as long as ctx lasts.
func Start(ctx context.Context, c Config, logger *slog.Logger) (_ *Worker, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	w := &Worker{failed: make(chan error, 1), health: newHealth(logger)}
	defer func() {
		if err != nil {
			w.Stop(ctx)
		}
	}()
	keyring, err := secret.ParseKeyring(c.EncryptionKeys.Reveal())
	if err != nil {
		return nil, err
	}
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	w.watchStart(metrics)

	listener, err := w.listen(c.HTTPAddr)
	if err != nil {
		return nil, err
	}
	if c.PublicURL == "" && c.ConsoleAuth == authNone {
		c.PublicURL = "http://" + w.HTTPAddr
	}
	// Alive from the start, and ready at its end.
	server := w.serveHTTP(listener, metrics, c.ConsoleAuth != "")
	if err := w.connect(ctx, c, logger); err != nil {
		return nil, err
	}
	js, err := jetstream.New(w.nc)
	if err != nil {
		return nil, err
	}
	js = countPublishes(js, metrics, w.health.stored)
	tracer, err := trace.Start(ctx, Version, logger)
	if err != nil {
		return nil, fmt.Errorf("traces (OTEL_EXPORTER_OTLP_ENDPOINT): %w", err)
	}
	w.onStop(func(ctx context.Context) {
		// The spans of the last calls; an endpoint that is away must not take the stop budget.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		tracer.Stop(ctx)
	})
	topology := consumer.Topology{Replicas: c.Replicas, Retention: c.Retention}
	var stream jetstream.Stream
	var objects *consumer.Objects
	err = w.await(ctx, logger, "JetStream", func(ctx context.Context) error {
		if err := topology.Ensure(ctx, js); err != nil {
			return fmt.Errorf("prepare JetStream at %s: %w", secret.RedactURLs(w.nc.ConnectedUrl()), err)
		}
		var opening errgroup.Group // at once, because each asks the server
		opening.Go(func() (err error) {
			if stream, err = js.Stream(ctx, consumer.RequestStream); err != nil {
				return fmt.Errorf("open %s: %w", consumer.RequestStream, err)
			}
			return nil
		})
		opening.Go(func() (err error) {
			if objects, err = consumer.OpenObjects(ctx, js, maxObject, min(objectRoom, debug.SetMemoryLimit(-1)/4)); err != nil {
				return fmt.Errorf("open %s: %w", consumer.BodyBucket, err)
			}
			return nil
		})
		return opening.Wait()
	})
	if err != nil {
		return nil, err
	}
	if w.Connections, err = connection.Open(ctx, js, keyring, connection.Options{Logger: logger}); err != nil {
		return nil, err
	}
	w.onStopNow(w.Connections.Close)
	w.watch(metrics)

	client, err := zoho.New(c.zoho(int(w.nc.MaxPayload())))
	if err != nil {
		return nil, err
	}
	w.onStop(func(context.Context) { client.Close() })

	events := &event.Publisher{JS: js, Connections: w.Connections, PublicURL: c.PublicURL, Logger: logger}
	tokens, err := w.openTokens(ctx, c, token.Options{
		JS: js, Connections: w.Connections, Keyring: keyring, Refresher: client, Logger: logger, Metrics: metrics,
		Events: events.Publish,
	})
	if err != nil {
		return nil, err
	}

	clock := &register.Clock{}
	responses := consumer.NewResponses(js)
	claims := ledger.Open(js, clock, c.CallTimeout)
	requests := consumer.New(consumer.Options{
		Conn: w.nc, JetStream: js, Stream: stream, Connections: w.Connections, Tokens: tokens, Responses: responses, Ledger: claims, Clock: clock,
		Relay: relay.New(relay.Options{
			Connections: w.Connections, Tokens: tokens, Ledger: claims, Zoho: client,
			Responses: responses, Objects: objects, Clock: clock, CallTimeout: c.CallTimeout, Logger: logger, Metrics: metrics,
		}),
		Decoder:     &envelope.Decoder{ReplyPrefixes: c.ReplyPrefixes, Inbox: c.inbox() + ".", MaxBytes: int(w.nc.MaxPayload())},
		MaxInFlight: c.MaxInFlight, Reserve: c.CreditsReserve, AckWait: c.AckWait, NotReady: w.notReady, Version: semver(Version), Logger: logger, Metrics: metrics, Tracer: tracer,
	})
	pages, err := w.startConsole(ctx, c, consoleParts{
		js: js, keyring: keyring, store: w.Connections, tokens: tokens, zoho: client, events: events,
	})
	if err != nil {
		return nil, err
	}
	if pages != nil {
		w.pages.Store(&pages)
	}
	w.onStop(func(context.Context) { shutdown(server) })
	if err := requests.Start(ctx); err != nil {
		return nil, err
	}
	looking, stopLooking := context.WithCancel(context.WithoutCancel(ctx))
	var look sync.WaitGroup
	look.Go(func() { w.health.run(looking, js) })
	w.onStopNow(func() {
		stopLooking()
		look.Wait()
	})
	w.onStop(requests.Stop)
	w.serves.Store(true)
	w.onStop(func(context.Context) { w.serves.Store(false) })
	logger.Info("worker started", "version", Version, "nats", secret.RedactURLs(w.nc.ConnectedUrl()),
		"http", w.HTTPAddr, "connections", len(w.Connections.All()))
	return w, nil
}

// Run starts a worker and keeps it until ctx ends or a part of it dies.
func Run(ctx context.Context, c Config, logger *slog.Logger) error {
	collectLess()
	w, err := Start(ctx, c, logger)
	if err != nil && ctx.Err() != nil {
		logger.Info("stopped before it had started", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	var died error
	select {
	case <-ctx.Done():
		logger.Info("stopping: no new requests, waiting for the calls in flight", "at_most_ms", c.StopTimeout.Milliseconds())
	case died = <-w.failed:
		logger.Error("a part of the worker died: stopping", "err", died)
	}
	budget, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.StopTimeout)
	defer cancel()
	w.Stop(budget)
	logger.Info("worker stopped")
	return died
}

// Stop stops the worker's parts in reverse; ctx is its budget for calls in
// flight. Stopping twice is fine.
func (w *Worker) Stop(ctx context.Context) {
	for len(w.stop) > 0 {
		last := w.stop[len(w.stop)-1]
		w.stop = w.stop[:len(w.stop)-1]
		last(ctx)
	}
}

func (w *Worker) onStop(f func(context.Context)) { w.stop = append(w.stop, f) }

// openTokens builds the token source; without Redis it goes without the lock.
func (w *Worker) openTokens(ctx context.Context, c Config, options token.Options) (*token.Source, error) {
	client, err := openRedis(c, options.Logger)
	if err != nil {
		return nil, err
	}
	var locker *lock.Locker
	if client != nil {
		w.onStop(func(context.Context) { _ = client.Close() })
		locker = lock.New(client, lock.Options{Prefix: "zoho:lock:", Logger: options.Logger})
		options.Locker = locker
	}
	pinging, stopPinging := context.WithCancel(context.WithoutCancel(ctx))
	w.onStop(func(context.Context) { stopPinging() })
	pingRedis(pinging, locker, options.Metrics)
	tokens, err := token.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	w.onStop(func(context.Context) { tokens.Close() })
	return tokens, nil
}

// connect connects to NATS, as soon as there is a server.
func (w *Worker) connect(ctx context.Context, c Config, logger *slog.Logger) error {
	c.NATSInboxPrefix = c.inbox()
	noticed := nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		logger.Warn("NATS", "err", err)
		w.health.onError(err)
	})
	again := nats.ReconnectHandler(func(nc *nats.Conn) {
		logger.Info("NATS connection is back", "nats", secret.RedactURLs(nc.ConnectedUrl()))
		w.health.connected()
	})
	err := w.await(ctx, logger, "NATS", func(context.Context) (err error) {
		w.nc, err = connect(c, "zoho-worker", logger, noticed, again)
		return err
	})
	switch {
	case err != nil && ctx.Err() == nil:
		return fmt.Errorf("%w: %s", err, natsMend(err))
	case err != nil:
		return err
	}
	w.onStop(func(context.Context) { w.nc.Close() })
	if version := w.nc.ConnectedServerVersion(); older(version, minNATS) {
		return fmt.Errorf("nats-server at %s is %s: a worker needs %s or newer, because org queues are paused and reset",
			secret.RedactURLs(w.nc.ConnectedUrl()), version, minNATS)
	}
	return nil
}

// notReady is why the worker takes no requests, "" where it does.
func (w *Worker) notReady() string {
	reasons := w.health.reasons()
	switch {
	case len(reasons) > 0:
		return strings.Join(reasons, "; ")
	case !w.serves.Load():
		return "starting or stopping"
	case !w.nc.IsConnected(): // nc is there once it serves
		return "no connection to NATS"
	}
	return ""
}

// listen takes the HTTP address, so that one that is taken is told at once.
func (w *Worker) listen(addr string) (net.Listener, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for HTTP (--http-addr): %w", err)
	}
	w.HTTPAddr = listener.Addr().String()
	w.onStop(func(context.Context) { _ = listener.Close() })
	return listener, nil
}

// serveHTTP serves what an operations team reads, and the console, if there is to be
// one, once it is there.
func (w *Worker) serveHTTP(listener net.Listener, metrics *prometheus.Registry, console bool) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "ok") })
	mux.HandleFunc("GET /readyz", func(rw http.ResponseWriter, _ *http.Request) {
		if why := w.notReady(); why != "" {
			http.Error(rw, "not ready: "+why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(rw, "ready")
	})
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		switch pages := w.pages.Load(); {
		case pages != nil:
			(*pages).ServeHTTP(rw, r)
		case console: // a person may have just come back from Zoho
			rw.Header().Set("Retry-After", "5")
			rw.Header().Set("Refresh", "5")
			rw.Header().Set("Cache-Control", "no-store")
			http.Error(rw, "The worker is starting. This page goes on by itself.", http.StatusServiceUnavailable)
		default:
			http.Error(rw, "There is no such page, and no console: --console-auth says who may open it.", http.StatusNotFound)
		}
	})
	server := &http.Server{
		Handler: mux, MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(w.health.logger.Handler(), slog.LevelWarn),
		// Whoever sends or takes slowly, or nothing, holds a connection for so long. The
		// console's pages have a time of their own once they are asked for.
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
	}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			w.failed <- fmt.Errorf("serve HTTP: %w", err)
		}
	}()
	w.onStop(func(context.Context) { _ = server.Close() })
	return server
}

// shutdown lets requests end: long enough for a sign-in that is at Zoho to come to its end.
func shutdown(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		_ = server.Close()
	}
}
