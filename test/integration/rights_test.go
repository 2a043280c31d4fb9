package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/zoho/zohotest"
)

// F22: a permission is taken away from a worker while it runs, by a
// configuration that the server reads again. The worker is not ready and says
// why, sends no insert that it can't claim, and goes on by itself when the
// permission is back.
func TestPermissionTakenAway(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		taken *server.Permissions
		why   string
	}{
		"claims": {
			&server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"zoho.claims.>"}}}, "may not publish to zoho.claims.>",
		},
		"responses": {
			&server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"zoho.responses.>"}}}, "may not publish to zoho.responses.>",
		},
		"activity": {
			&server.Permissions{Subscribe: &server.SubjectPermission{Deny: []string{"zoho.activity.>"}}}, "may not subscribe to zoho.activity.>",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, zohotest.Options{})
			with := func(p *server.Permissions) []*server.User {
				return []*server.User{{Username: "test", Password: "x"}, {Username: "worker", Password: "x", Permissions: p}}
			}
			options := &server.Options{JetStream: true, Users: with(nil)}
			ns := natstest.Run(t, options)
			r.moveTo(ns.ClientURL(), nats.UserInfo("test", "x"))
			r.demo(5)
			w := r.worker(func(c *app.Config) {
				c.NATSURL = strings.Replace(r.NATSURL, "nats://", "nats://worker:x@", 1)
				c.CallTimeout, c.AckWait = crashCallTimeout, crashAckWait
			})
			isReady(t, w.HTTPAddr)
			r.publish("demo", insert("before", "Before"))
			wantStatus(t, r.await("demo", "before"), 201)
			reload := func(p *server.Permissions) {
				t.Helper()
				changed := options.Clone()
				changed.Users = with(p)
				if err := ns.ReloadOptions(changed); err != nil {
					t.Fatal(err)
				}
			}
			taken := time.Now()
			reload(c.taken)
			notReady(t, w.HTTPAddr, c.why)
			t.Logf("not ready after %s", time.Since(taken).Round(time.Millisecond))
			if log := r.logs.text.String(); !strings.Contains(log, "not ready: trouble with NATS") {
				t.Error("the log doesn't say so")
			}
			// That worker's requests wait, and are done when it may again.
			r.publish("demo", insert("meanwhile", "Meanwhile"))
			if name == "claims" {
				eventually(t, "the worker tried to claim it", func() bool { return strings.Contains(r.logs.text.String(), "not claimed") })
				if n := r.posts()["Meanwhile"]; n != 0 {
					t.Errorf("an insert that can't be claimed was sent %d times", n)
				}
			}
			reload(nil)
			isReady(t, w.HTTPAddr)
			response := r.await("demo", "meanwhile")
			if n := r.posts()["Meanwhile"]; n != 1 {
				t.Errorf("the insert was sent %d times", n)
			}
			if response.Error == nil && response.Status != 201 {
				t.Errorf("response %s", response.AppendJSON(nil))
			}
			if name == "activity" {
				// It hears of an idle org again.
				heard := make(chan *nats.Msg, 1)
				sub, err := r.nc.ChanSubscribe("zoho.activity.demo", heard)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = sub.Unsubscribe() }()
				eventually(t, "the server knows the worker's subscription", func() bool {
					subs, err := ns.Subsz(&server.SubszOptions{Subscriptions: true, Test: "zoho.activity.demo", Account: "$G"})
					return err == nil && len(subs.Subs) == 2
				})
			}
			r.publish("demo", insert("after", "After"))
			wantStatus(t, r.await("demo", "after"), 201)
		})
	}
}

// F21: the credentials that a worker runs with expire, and the file holds new
// ones by then: the worker goes on with these.
func TestCredentialsRenewed(t *testing.T) {
	t.Parallel()
	must := func(k nkeys.KeyPair, err error) nkeys.KeyPair {
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	id := func(k nkeys.KeyPair) string {
		public, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return public
	}
	operator, account, system := must(nkeys.CreateOperator()), must(nkeys.CreateAccount()), must(nkeys.CreateAccount())
	resolver := &server.MemAccResolver{}
	for _, a := range []nkeys.KeyPair{account, system} {
		claims := jwt.NewAccountClaims(id(a))
		if a == account {
			claims.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
		}
		token, err := claims.Encode(operator)
		if err != nil {
			t.Fatal(err)
		}
		if err := resolver.Store(id(a), token); err != nil {
			t.Fatal(err)
		}
	}
	// creds are those of a new user, good for a while; 0: for ever.
	creds := func(good time.Duration) []byte {
		t.Helper()
		user := must(nkeys.CreateUser())
		claims := jwt.NewUserClaims(id(user))
		if good > 0 {
			claims.Expires = time.Now().Add(good).Unix()
		}
		token, err := claims.Encode(account)
		if err != nil {
			t.Fatal(err)
		}
		seed, _ := user.Seed()
		text, err := jwt.FormatUserConfig(token, seed)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	dir := t.TempDir()
	write := func(name string, text []byte) string {
		t.Helper()
		// As a mounted secret is changed: whole, by a rename.
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ns := natstest.Run(t, &server.Options{JetStream: true, TrustedKeys: []string{id(operator)}, AccountResolver: resolver, SystemAccount: id(system)})
	r := newRig(t, zohotest.Options{})
	r.moveTo(ns.ClientURL(), nats.UserCredentials(write("test.creds", creds(0))))
	r.demo(5)
	const good = 20 * time.Second // the worker is ready before that
	file := write("worker.creds", creds(good))
	w := r.worker(func(c *app.Config) { c.NATSURL, c.NATSCreds = r.NATSURL, file })
	isReady(t, w.HTTPAddr)
	r.publish("demo", insert("before", "Before"))
	wantStatus(t, r.await("demo", "before"), 201)
	file = write("worker.creds", creds(0))
	eventually(t, "the old credentials have expired", func() bool {
		return strings.Contains(r.logs.text.String(), "NATS connection is back")
	})
	isReady(t, w.HTTPAddr)
	for i := range 3 {
		id := fmt.Sprint("after-", i)
		r.publish("demo", insert(id, id))
		wantStatus(t, r.await("demo", id), 201)
	}
}

// What a worker tries to see whether it could work leaves nothing on the streams.
func TestLooksLeaveNoTrace(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(5)
	tried := map[string]chan *nats.Msg{}
	for _, subject := range []string{"zoho.responses._.probe", "zoho.claims._.probe", "zoho.tokens._", "zoho.connections._", "zoho.dead._", "zoho.events._"} {
		tried[subject] = make(chan *nats.Msg, 100)
		if _, err := r.nc.ChanSubscribe(subject, tried[subject]); err != nil {
			t.Fatal(err)
		}
	}
	w := r.worker()
	r.publish("demo", insert("one", "One"))
	wantStatus(t, r.await("demo", "one"), 201)
	for subject, heard := range tried {
		for range 2 {
			select {
			case <-heard:
			case <-time.After(patience):
				t.Fatalf("%s is never tried", subject)
			}
		}
	}
	isReady(t, w.HTTPAddr)
	for _, name := range []string{"ZOHO_RESPONSES", "ZOHO_CLAIMS", "ZOHO_TOKENS", "ZOHO_CONNECTIONS", "ZOHO_DEAD", "ZOHO_EVENTS"} {
		for subject := range r.last(name) {
			if _, ours := tried[subject]; ours {
				t.Errorf("%s is in %s", subject, name)
			}
		}
	}
}
