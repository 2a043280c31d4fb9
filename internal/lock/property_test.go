package lock

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"zoho-worker/internal/lock/redistest"
)

// TestProperty runs the scripts of three holders in random order, with locks
// that run out or are lost and holders that crash (and later come back and try
// to release), against a model of what Redis must say.
func TestProperty(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *redistest.Server{"redis": redistest.Start, "miniredis": redistest.Mini} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			client := s.Client()
			l := New(client, Options{Timeout: patience, Logger: slog.New(slog.DiscardHandler)})
			rapid.Check(t, func(t *rapid.T) { property(t, l, client) })
		})
	}
}

func property(t *rapid.T, l *Locker, client *redis.Client) {
	ctx := context.Background()
	client.FlushAll(ctx)
	nonces := []string{"a", "b", "c"}
	owner := ""
	who := rapid.SampledFrom(nonces)
	t.Repeat(map[string]func(*rapid.T){
		"acquire": func(t *rapid.T) {
			nonce := who.Draw(t, "who")
			left, err := l.try(ctx, "acme", nonce)
			switch {
			case err != nil:
				t.Fatal(err)
			case (owner == "") != (left == 0) || left > 15*time.Second+time.Millisecond:
				t.Fatalf("%s asks, %q has it, for %v", nonce, owner, left)
			case left == 0:
				owner = nonce
			}
		},
		"renew": func(t *rapid.T) {
			nonce := who.Draw(t, "who")
			kept, err := renewScript.Run(ctx, client, l.keys("acme"), nonce, 15000).Int()
			if err != nil || (kept == 1) != (owner == nonce) {
				t.Fatalf("renewal by %s of %q's lock: %d, %v", nonce, owner, kept, err)
			}
		},
		"release": func(t *rapid.T) {
			nonce := who.Draw(t, "who")
			freed, err := releaseScript.Run(ctx, client, l.keys("acme"), nonce, "channel", "acme").Int()
			if err != nil || (freed == 1) != (owner == nonce) {
				t.Fatalf("release by %s of %q's lock: %d, %v", nonce, owner, freed, err)
			}
			if freed == 1 {
				owner = ""
			}
		},
		"run out": func(t *rapid.T) {
			client.PExpire(ctx, "zoho:lock:acme", 0)
			owner = ""
		},
		"lose all": func(t *rapid.T) {
			client.FlushAll(ctx)
			owner = ""
		},
		"": func(t *rapid.T) {
			got, err := client.Get(ctx, "zoho:lock:acme").Result()
			if err != nil && err != redis.Nil {
				t.Fatal(err)
			}
			if got != owner {
				t.Fatalf("Redis says %q has it, the model %q", got, owner)
			}
		},
	})
}
