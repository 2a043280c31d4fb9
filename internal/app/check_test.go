package app

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/secret"
)

func TestOlder(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{
		"2.13.9": true, "2.14.0": false, "2.14.0-RC.1": false, "2.15.2": false, "2.9.25": true, "3.0.0": false, "1.99.99": true, "dev": false,
	} {
		if got := older(version, minNATS); got != want {
			t.Errorf("%s older than %s: %v", version, minNATS, got)
		}
	}
}

// An account that is nearly full is a fault, and says of what.
func TestLimits(t *testing.T) {
	t.Parallel()
	account := func(change func(*jetstream.AccountInfo)) []Finding {
		a := &jetstream.AccountInfo{}
		a.Limits = jetstream.AccountLimits{MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: -1}
		change(a)
		f := &findings{}
		checkLimits(f, a, 1)
		return f.all
	}
	for name, change := range map[string]func(*jetstream.AccountInfo){
		"JetStream streams":   func(a *jetstream.AccountInfo) { a.Limits.MaxStreams = 3 },
		"JetStream consumers": func(a *jetstream.AccountInfo) { a.Limits.MaxConsumers, a.Consumers = 100, 95 },
		"JetStream storage":   func(a *jetstream.AccountInfo) { a.Limits.MaxStore, a.Store = 1<<30, 1<<30-1 },
		"JetStream max_bytes": func(a *jetstream.AccountInfo) { a.Limits.MaxBytesRequired = true },
	} {
		all := account(change)
		if len(all) == 0 || all[0].What != name || all[0].State != FindingFault || all[0].Mend == "" {
			t.Errorf("%s: %+v", name, all)
		}
	}
	if all := account(func(*jetstream.AccountInfo) {}); len(all) != 1 || all[0].State != FindingOK {
		t.Errorf("without limits: %+v", all)
	}
}

// What can't be read is told once each, and not as missing too; its server is not tried.
func TestCheckOfWhatCantBeRead(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		args        []string
		environment map[string]string
		want        []string
	}{
		"secrets": {
			[]string{"--zoho-client-id", "1000.X", "--public-url", "https://zoho.example.com", "--console-auth", "basic"},
			map[string]string{"CONSOLE_USERS_FILE": "/none/users", "ENCRYPTION_KEYS_FILE": "/none/keys", "ZOHO_CLIENT_SECRET_FILE": "/none/secret", "REDIS_URL_FILE": "/none/redis"},
			[]string{"ENCRYPTION_KEYS_FILE: open /none/keys", "REDIS_URL_FILE: open /none/redis", "ZOHO_CLIENT_SECRET_FILE: open /none/secret", "CONSOLE_USERS_FILE: open /none/users"},
		},
		"the file": {[]string{"--config", "/none/worker.yaml", "--redis-url", ""}, nil, []string{"--config (CONFIG): open /none/worker.yaml"}},
	} {
		c, err := load(t, append(row.args, "--nats-url", "nats://127.0.0.1:1"), row.environment)
		if err == nil {
			t.Fatalf("%s: no fault", name)
		}
		var found []string
		for _, f := range Check(t.Context(), c, slog.New(slog.DiscardHandler)) {
			if f.What == "configuration" {
				found = append(found, f.Detail)
			}
			if f.What == "Redis" && !strings.Contains(f.Detail, "not tried") && !strings.Contains(f.Detail, "none configured") {
				t.Errorf("%s: %+v", name, f)
			}
		}
		if len(found) != len(row.want) {
			t.Fatalf("%s: found %q", name, found)
		}
		for i, want := range row.want {
			if !strings.HasPrefix(found[i], want) {
				t.Errorf("%s: found %q, want %s", name, found[i], want)
			}
		}
	}
}

// A file of this side that is missing or no good is not taken for a server that is away.
func TestNATSMend(t *testing.T) {
	t.Parallel()
	junk, none := write(t, "junk", "junk"), filepath.Join(t.TempDir(), "none")
	// A server without TLS says so in its first line.
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plain.Close() })
	go func() {
		for {
			conn, err := plain.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(`INFO {"server_id":"S","version":"2.15.2","max_payload":1048576,"proto":1}` + "\r\n"))
		}
	}()
	for want, configs := range map[string][]Config{
		"the server has no TLS":   {{NATSURL: "tls://" + plain.Addr().String()}},
		"a plain subject":         {{NATSInboxPrefix: "_INBOX.acme."}},
		"percent-encode":          {{NATSURL: "nats://a:b%zz@127.0.0.1:1"}},
		"is the file there":       {{NATSCreds: none}, {NATSNKey: none}, {NATSCA: none}, {NATSCert: none, NATSKey: none}},
		"a file with the seed":    {{NATSNKey: junk}},
		"PEM files":               {{NATSCA: junk}, {NATSCert: junk, NATSKey: junk}},
		"is the server up, and -": {{}},
	} {
		for _, c := range configs {
			c.NATSURL = cmp.Or(c.NATSURL, "nats://127.0.0.1:1")
			if _, err := Connect(c, "test", slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %s", err, want)
			}
		}
	}
}

// A Redis that the lock is not made for is told.
func TestCheckOldRedis(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go oldRedis(conn)
		}
	}()
	f := &findings{}
	checkRedis(t.Context(), f, Config{RedisURL: secret.New("redis://" + listener.Addr().String())}, slog.New(slog.DiscardHandler))
	if len(f.all) == 0 || f.all[0].State != FindingWarning || !strings.Contains(f.all[0].Detail, "Redis 5.0.14") || !strings.Contains(f.all[0].Mend, minRedis) {
		t.Errorf("found %+v", f.all)
	}
}

// oldRedis answers as Redis 5 does, as far as that matters here.
func oldRedis(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		var n, size int
		if _, err := fmt.Fscanf(in, "*%d\r\n", &n); err != nil {
			return
		}
		var words []string
		for range n {
			if _, err := fmt.Fscanf(in, "$%d\r\n", &size); err != nil {
				return
			}
			word := make([]byte, size+2)
			if _, err := io.ReadFull(in, word); err != nil {
				return
			}
			words = append(words, strings.ToUpper(string(word[:size])))
		}
		switch words[0] {
		case "PING":
			fmt.Fprint(conn, "+PONG\r\n")
		case "INFO":
			const info = "# Server\r\nredis_version:5.0.14\r\n"
			fmt.Fprintf(conn, "$%d\r\n%s\r\n", len(info), info)
		default:
			fmt.Fprint(conn, "-ERR unknown command\r\n")
		}
	}
}

// offJetStream is a server whose clock is off.
type offJetStream struct {
	jetstream.JetStream
	off time.Duration
}

type offStream struct {
	jetstream.Stream
	off time.Duration
}

func (o offJetStream) Stream(ctx context.Context, name string) (jetstream.Stream, error) {
	stream, err := o.JetStream.Stream(ctx, name)
	return offStream{stream, o.off}, err
}

func (o offStream) CachedInfo() *jetstream.StreamInfo {
	info := *o.Stream.CachedInfo()
	info.TimeStamp = info.TimeStamp.Add(o.off)
	return &info
}

// A clock that is off is told, and once, not for each stream.
func TestCheckOfAClockThatIsOff(t *testing.T) {
	t.Parallel()
	js := natstest.Start(t).JetStream()
	if err := (consumer.Topology{Replicas: 1, Retention: 24 * time.Hour}).Ensure(t.Context(), js); err != nil {
		t.Fatal(err)
	}
	for off, want := range map[time.Duration]string{
		0: "", time.Hour: "this machine's clock is 1h0m0s behind the NATS server's", -time.Hour: "this machine's clock is 1h0m0s ahead of the NATS server's",
	} {
		f := &findings{}
		checkStreams(t.Context(), f, Defaults(), offJetStream{js, off}, js.Conn())
		var told []string
		for _, found := range f.all {
			if found.What == "clock" && found.State == FindingWarning && found.Mend != "" {
				told = append(told, found.Detail)
			}
		}
		if said := strings.Join(told, "; "); said != want {
			t.Errorf("%s: %q, want %q", off, said, want)
		}
	}
}
