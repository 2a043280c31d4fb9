package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/inspect"
	"zoho-worker/internal/zoho/zohotest"
)

// restartable is a nats-server that comes back at its address with its store.
type restartable struct {
	t       testing.TB
	options *server.Options
	*server.Server
}

func newRestartable(t testing.TB, options *server.Options) *restartable {
	t.Helper()
	options.Host, options.Port, options.NoSigs, options.NoLog, options.JetStream = "127.0.0.1", -1, true, true, true
	s := &restartable{t: t, options: options}
	t.Cleanup(s.stop)
	s.start()
	return s
}

func (s *restartable) start() {
	s.t.Helper()
	options := s.options.Clone()
	ns, err := server.NewServer(options)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Server = ns
	ns.Start()
	if !ns.ReadyForConnections(patience) {
		s.t.Fatal("nats-server is not ready")
	}
	s.options.Port = options.Port
}

func (s *restartable) stop() {
	if s.Server != nil {
		s.Shutdown()
		s.WaitForShutdown()
	}
}

// disk mounts a file system of its own, of so many bytes. Who may not is skipped.
func disk(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
		t.Skip("a disk of its own can't be mounted here: ", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error("unmount: ", err)
		}
	})
	return dir
}

// fill writes a file until no more than left bytes are free.
func fill(t *testing.T, dir string, left uint64) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); ; {
		var stat syscall.Statfs_t
		if err := syscall.Statfs(dir, &stat); err != nil {
			t.Fatal(err)
		}
		if stat.Bavail*uint64(stat.Bsize) <= left { //nolint:gosec // sizes
			break
		}
		if _, err := f.Write(block); err != nil {
			break // as full as it gets
		}
	}
	if err := f.Close(); err != nil && !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// F15: the disk of NATS is full. The server leaves writes unanswered; the worker
// says so and isn't ready; nothing that was acknowledged is dropped and no
// insert is sent twice. With room again, and NATS restarted, the worker goes on
// by itself.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	dir := disk(t, 64<<20)
	r := newRig(t, zohotest.Options{})
	ns := newRestartable(t, &server.Options{StoreDir: filepath.Join(dir, "nats")})
	r.moveTo(ns.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	const places = 5
	r.demo(places)
	r.Zoho.SetLatency(20 * time.Millisecond)
	addr := freeAddr(t)
	p := r.process("HTTP_ADDR=" + addr)
	isReady(t, addr)
	w := r.workload()
	w.publishAll(w.mix(12)...)
	r.drained()
	before := len(r.last(consumer.ResponseStream))

	free := fill(t, dir, 64<<10)
	// A careful requester tries again what isn't acknowledged, later.
	var again []*request
	store := func(q *request) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := r.js.Publish(ctx, "zoho.requests.demo", w.encode(q))
		return err
	}
	padding := strings.Repeat("x", 2<<10)
	for n := 0; len(again) < 5; n++ {
		if n == 2000 {
			t.Fatal("the disk is never full")
		}
		q := w.add(doc{"id": w.id("full"), "method": "POST", "url": "/v8/Leads", "headers": doc{"X-Padding": padding}}, false)
		if store(q) != nil {
			again = append(again, q)
		}
	}
	notReady(t, addr, "can't store")
	if log := r.logs.text.String(); !strings.Contains(log, "not ready: trouble with NATS") {
		t.Error("the log doesn't say so")
	}
	if !p.alive() {
		t.Fatal("the worker has ended")
	}

	free()
	ns.stop() // a stream that couldn't write stays as it is until nats-server is started again
	ns.start()
	isReady(t, addr)
	for _, q := range again {
		eventually(t, "the request is stored", func() bool { return store(q) == nil })
	}
	got := w.verify()
	if n := len(got.unknown); n > places {
		t.Errorf("%d outcomes are unknown, and %d were in flight", n, places)
	}
	if n := len(r.last(consumer.ResponseStream)); n < before {
		t.Errorf("%d of the %d responses stored before are left", n, before)
	}
	p.signal(syscall.SIGTERM)
	p.exited()
}

// F15, the account's limit: JetStream refuses what there is no room for. The
// worker isn't ready, and goes on by itself when the limit is raised.
func TestStoreLimit(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	ns := newRestartable(t, &server.Options{StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 20})
	r.moveTo(ns.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
	r.demo(5)
	addr := freeAddr(t)
	w := r.workload()
	padding := strings.Repeat("x", 4<<10)
	var refused *request
	for refused == nil {
		q := w.add(doc{"id": w.id("full"), "method": "POST", "url": "/v8/Leads", "headers": doc{"X-Padding": padding}}, false)
		_, err := r.js.Publish(t.Context(), "zoho.requests.demo", w.encode(q))
		if err == nil {
			continue
		}
		var api *jetstream.APIError
		if !errors.As(err, &api) || api.Code == 0 {
			t.Fatalf("the publisher isn't told that there is no room: %v", err)
		}
		refused = q
	}
	p := r.process("HTTP_ADDR=" + addr)
	notReady(t, addr, "can't store")
	eventually(t, "the worker says so to who looks", func() bool {
		workers := (&inspect.Reader{NC: r.nc, JS: r.js}).Workers(t.Context())
		return len(workers) == 1 && strings.Contains(workers[0].NotReady, "can't store")
	})
	if n := len(r.posts()); n != 0 {
		t.Errorf("%d inserts were sent without a claim", n)
	}
	ns.stop()
	ns.options.JetStreamMaxStore = 1 << 30
	ns.start()
	isReady(t, addr)
	eventually(t, "the refused request is stored", func() bool {
		_, err := r.js.Publish(t.Context(), "zoho.requests.demo", w.encode(refused))
		return err == nil
	})
	if got := w.verify(); len(got.unknown) != 0 {
		t.Errorf("unknown are %v", got.unknown)
	}
	p.signal(syscall.SIGTERM)
	p.exited()
}

// A request stream that is full: publishers get the server's error, what is
// stored stays, and is done.
func TestRequestStreamFull(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	config := r.requests().CachedInfo().Config
	config.MaxBytes = 64 << 10
	if _, err := r.js.UpdateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	w := r.workload()
	var refused *request
	for refused == nil {
		q := w.add(doc{"id": w.id("full"), "method": "POST", "url": "/v8/Leads"}, false)
		_, err := r.js.Publish(t.Context(), "zoho.requests.demo", w.encode(q))
		var api *jetstream.APIError
		switch {
		case err == nil:
		case errors.As(err, &api) && strings.Contains(api.Description, "maximum bytes exceeded"):
			refused = q
		default:
			t.Fatalf("the publisher gets %v", err)
		}
	}
	if n := r.backlog(); int(n) != len(w.requests)-1 { //nolint:gosec // a count
		t.Errorf("%d requests are on the stream, and %d were acknowledged", n, len(w.requests)-1)
	}
	r.worker()
	eventually(t, "there is room again", func() bool {
		_, err := r.js.Publish(t.Context(), "zoho.requests.demo", w.encode(refused))
		return err == nil
	})
	if got := w.verify(); len(got.unknown) != 0 {
		t.Errorf("unknown are %v", got.unknown)
	}
}
