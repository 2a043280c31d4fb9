package app

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"zoho-worker/internal/lock"
	"zoho-worker/internal/secret"
)

// redisServer starts a real redis-server with these options and waits until
// ready; the first argument may be a configuration file.
func redisServer(t *testing.T, ready func() error, args ...string) {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("REQUIRE_REDIS") != "" {
			t.Fatal("REQUIRE_REDIS is set and there is no redis-server: ", err)
		}
		t.Skip("needs redis-server")
	}
	cmd := exec.Command(path, append(args, "--save", "", "--appendonly", "no", "--dir", t.TempDir())...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := ready()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("redis-server %v: %v", args, err)
		}
	}
}

func port(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	return port
}

// locks takes and gives back a lock as a worker does, with all three scripts and
// the bell.
func locks(t *testing.T, c Config) error {
	t.Helper()
	client, err := openRedis(c, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer client.Close()
	locker := lock.New(client, lock.Options{Prefix: "zoho:lock:", Timeout: time.Second, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	first, err := locker.Acquire(ctx, "a")
	if err != nil {
		return err
	}
	time.AfterFunc(50*time.Millisecond, first.Release)
	second, err := locker.Acquire(ctx, "a")
	if err != nil {
		return err
	}
	second.Release()
	return nil
}

func ping(options *redis.Options) func() error {
	return func() error {
		client := redis.NewClient(options)
		defer client.Close()
		return client.Ping(context.Background()).Err()
	}
}

// An ACL user with what docs/configuration.md lists is enough; with less, the lock is unavailable.
func TestRedisACL(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var rules string
	for line := range strings.Lines(string(doc)) {
		if strings.Contains(line, "an ACL user") {
			for _, part := range strings.Split(line, "`") {
				if strings.HasPrefix(part, "~") || strings.HasPrefix(part, "&") || strings.HasPrefix(part, "+") {
					rules += " " + part
				}
			}
		}
	}
	rules = strings.ReplaceAll(rules, " +info", "")
	p := port(t)
	conf := filepath.Join(t.TempDir(), "redis.conf")
	users := "user default off\nuser worker on >secret -@all" + rules + "\nuser poor on >secret ~other:* +@connection\n"
	// Each of them lacks one thing.
	lacking := []string{"publish", "subscribe", "pexpire", "pttl", "del", "get", "evalsha"}
	for _, command := range lacking {
		users += "user no-" + command + " on >secret -@all" + strings.Replace(rules, " +"+command, "", 1) + "\n"
	}
	users += "user no-channels on >secret -@all" + strings.Replace(rules, " &zoho:*", " resetchannels", 1) + "\n"
	if err := os.WriteFile(conf, []byte(users), 0o600); err != nil {
		t.Fatal(err)
	}
	redisServer(t, ping(&redis.Options{Addr: "127.0.0.1:" + p, Username: "worker", Password: "secret"}), conf, "--port", p)
	if err := locks(t, Config{RedisURL: secret.New("redis://worker:secret@127.0.0.1:" + p)}); err != nil {
		t.Errorf("with %q: %v", rules, err)
	}
	try := func(user string) Finding {
		f := &findings{}
		checkRedis(t.Context(), f, Config{RedisURL: secret.New("redis://" + user + "@127.0.0.1:" + p)}, slog.New(slog.DiscardHandler))
		return f.all[len(f.all)-1]
	}
	if f := try("worker:secret"); f.State != FindingOK {
		t.Errorf("check with %q: %+v", rules, f)
	}
	for _, lacks := range append(lacking, "channels") {
		if f := try("no-" + lacks + ":secret"); f.What != "Redis lock" || f.State != FindingFault {
			t.Errorf("without %s: %+v", lacks, f)
		}
	}
	for _, user := range []string{"poor:secret", "worker:wrong", ":secret"} {
		err := locks(t, Config{RedisURL: secret.New("redis://" + user + "@127.0.0.1:" + p)})
		if !errors.Is(err, lock.ErrUnavailable) {
			t.Errorf("as %s: %v", user, err)
		}
	}
}

// A Redis that gives no locks is not up, although it answers: it is a replica now.
func TestRedisThatOnlyAnswers(t *testing.T) {
	t.Parallel()
	p := port(t)
	redisServer(t, ping(&redis.Options{Addr: "127.0.0.1:" + p}), "--port", p, "--replicaof", "127.0.0.1 1")
	client, err := openRedis(Config{RedisURL: secret.New("redis://127.0.0.1:" + p)}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	metrics := prometheus.NewRegistry()
	pingRedis(t.Context(), lock.New(client, lock.Options{Logger: slog.New(slog.DiscardHandler)}), metrics)
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		up := -1.0
		families, err := metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "zoho_worker_redis_up" {
				up = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		if up == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("zoho_worker_redis_up is %v", up)
		}
	}
}

func TestRedisTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	selfSigned(t, dir)
	in := func(name string) string { return filepath.Join(dir, name) }
	p := port(t)
	config := Config{RedisURL: secret.New("rediss://127.0.0.1:" + p), RedisCA: in("crt"), RedisCert: in("crt"), RedisKey: in("key")}
	redisServer(t, func() error { return locks(t, config) },
		"--port", "0", "--tls-port", p, "--tls-cert-file", in("crt"), "--tls-key-file", in("key"), "--tls-ca-cert-file", in("crt"), "--tls-auth-clients", "yes")
	for what, c := range map[string]Config{
		"without the authority": {RedisURL: config.RedisURL, RedisCert: config.RedisCert, RedisKey: config.RedisKey},
		"without a certificate": {RedisURL: config.RedisURL, RedisCA: config.RedisCA},
		"without TLS":           {RedisURL: secret.New("redis://127.0.0.1:" + p)},
	} {
		if err := locks(t, c); !errors.Is(err, lock.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// selfSigned makes crt and key, good for both sides of 127.0.0.1.
func selfSigned(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"crt": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRedisCluster(t *testing.T) {
	t.Parallel()
	p := port(t)
	bus := port(t)
	options := &redis.Options{Addr: "127.0.0.1:" + p}
	redisServer(t, ping(options), "--port", p, "--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-announce-ip", "127.0.0.1")
	node := redis.NewClient(options)
	defer node.Close()
	if err := node.Do(t.Context(), "cluster", "addslotsrange", 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	c := Config{RedisURL: secret.New(fmt.Sprintf("redis://127.0.0.1:%[1]s?addr=127.0.0.1:%[1]s", p))}
	var err error
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = locks(t, c); err == nil {
			return
		}
	}
	t.Fatal(err)
}

func TestRedisSentinel(t *testing.T) {
	t.Parallel()
	p, sentinel := port(t), port(t)
	redisServer(t, ping(&redis.Options{Addr: "127.0.0.1:" + p, Password: "secret"}), "--port", p, "--requirepass", "secret")
	conf := filepath.Join(t.TempDir(), "sentinel.conf")
	text := fmt.Sprintf("sentinel monitor mymaster 127.0.0.1 %s 1\nsentinel auth-pass mymaster secret\n", p)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := exec.LookPath("redis-server")
	if err != nil {
		if os.Getenv("REQUIRE_REDIS") != "" {
			t.Fatal("REQUIRE_REDIS is set and there is no redis-server: ", err)
		}
		t.Skip("needs redis-server")
	}
	cmd := exec.Command(path, conf, "--sentinel", "--port", sentinel, "--bind", "127.0.0.1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c := Config{RedisURL: secret.New(fmt.Sprintf("redis://127.0.0.1:%[1]s?master_name=mymaster&password=secret&addr=127.0.0.1:%[1]s", sentinel))}
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = locks(t, c); err == nil {
			return
		}
	}
	t.Fatal(err)
}
