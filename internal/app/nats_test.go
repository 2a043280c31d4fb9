package app

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/secret"
)

func reaches(t *testing.T, c Config) error {
	t.Helper()
	nc, err := Connect(c, "test", slog.New(slog.DiscardHandler))
	if err == nil {
		nc.Close()
	}
	return err
}

func mustWrite(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestNATSNKey(t *testing.T) {
	t.Parallel()
	user, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := user.PublicKey()
	seed, _ := user.Seed()
	url := natstest.Run(t, &server.Options{Nkeys: []*server.NkeyUser{{Nkey: public}}}).ClientURL()
	dir := t.TempDir()
	if err := reaches(t, Config{NATSURL: url, NATSNKey: mustWrite(t, dir, "seed", seed)}); err != nil {
		t.Error(err)
	}
	other, _ := nkeys.CreateUser()
	wrong, _ := other.Seed()
	for what, c := range map[string]Config{
		"without":        {NATSURL: url},
		"another's seed": {NATSURL: url, NATSNKey: mustWrite(t, dir, "wrong", wrong)},
		"no seed":        {NATSURL: url, NATSNKey: mustWrite(t, dir, "nonsense", []byte("nonsense"))},
	} {
		if err := reaches(t, c); err == nil {
			t.Errorf("%s: it gets in", what)
		}
	}
}

// A credentials file of a server in operator mode.
func TestNATSCreds(t *testing.T) {
	t.Parallel()
	operator, _ := nkeys.CreateOperator()
	account, _ := nkeys.CreateAccount()
	user, _ := nkeys.CreateUser()
	id := func(k nkeys.KeyPair) string {
		public, err := k.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		return public
	}
	accountJWT, err := jwt.NewAccountClaims(id(account)).Encode(operator)
	if err != nil {
		t.Fatal(err)
	}
	userJWT, err := jwt.NewUserClaims(id(user)).Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := user.Seed()
	creds, err := jwt.FormatUserConfig(userJWT, seed)
	if err != nil {
		t.Fatal(err)
	}
	resolver := &server.MemAccResolver{}
	if err := resolver.Store(id(account), accountJWT); err != nil {
		t.Fatal(err)
	}
	url := natstest.Run(t, &server.Options{TrustedKeys: []string{id(operator)}, AccountResolver: resolver}).ClientURL()
	if err := reaches(t, Config{NATSURL: url, NATSCreds: mustWrite(t, t.TempDir(), "worker.creds", creds)}); err != nil {
		t.Error(err)
	}
	if err := reaches(t, Config{NATSURL: url}); err == nil {
		t.Error("without credentials: it gets in")
	}
}

// NATS takes addresses without a scheme, and passwords with an @ in them. What it
// can't read it quotes.
func TestConnectShowsNoPassword(t *testing.T) {
	t.Parallel()
	for _, url := range []string{
		"worker:PLANTED@127.0.0.1:1",
		"PLANTED@127.0.0.1:1",
		"nats://worker:a@PLANTED@127.0.0.1:1",
		"nats://a@PLANTED@127.0.0.1:1",
		"nats://worker:PLANTED%zz@127.0.0.1:1",
		"nats://worker:PLANTED#1@127.0.0.1:1",
		"nats://worker:PLANTED/1@127.0.0.1:1",
		"nats://worker:1/PLANTED@127.0.0.1:1",
	} {
		c := Defaults()
		c.NATSURL = url
		_, err := connect(c, "test", slog.New(slog.DiscardHandler), nats.MaxReconnects(0))
		if err == nil || strings.Contains(err.Error(), "PLANTED") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// jetStreamOf is what Check finds of JetStream.
func jetStreamOf(t *testing.T, c Config) (found []Finding) {
	t.Helper()
	c.RedisURL = secret.Text{}
	for _, f := range Check(t.Context(), c, slog.New(slog.DiscardHandler)) {
		if strings.HasPrefix(f.What, "JetStream") {
			found = append(found, f)
		}
	}
	return found
}

// What a user may not do is in the finding.
func TestCheckSaysWhatIsDenied(t *testing.T) {
	t.Parallel()
	url := natstest.Run(t, &server.Options{JetStream: true, Users: []*server.User{{
		Username: "worker", Password: "p", Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: []string{"$JS.API.>"}}},
	}}}).ClientURL()
	c := Defaults()
	c.NATSURL = strings.Replace(url, "nats://", "nats://worker:p@", 1)
	found := jetStreamOf(t, c)
	if len(found) != 1 || found[0].State != FindingFault || !strings.Contains(strings.ToLower(found[0].Detail), "permissions violation for publish") {
		t.Errorf("found %+v", found)
	}
}

// A server that takes small messages only is told of.
func TestCheckOfSmallMessages(t *testing.T) {
	t.Parallel()
	c := Defaults()
	c.NATSURL = natstest.Run(t, &server.Options{JetStream: true, MaxPayload: 1<<20 - 1}).ClientURL()
	c.RedisURL = secret.Text{}
	for _, f := range Check(t.Context(), c, slog.New(slog.DiscardHandler)) {
		if f.What == "NATS max_payload" && f.State == FindingWarning && f.Mend != "" {
			return
		}
	}
	t.Error("nothing is said of it")
}

// An account whose limits are by the number of replicas has those of its tier.
func TestCheckTieredLimits(t *testing.T) {
	t.Parallel()
	operator, _ := nkeys.CreateOperator()
	account, _ := nkeys.CreateAccount()
	system, _ := nkeys.CreateAccount()
	user, _ := nkeys.CreateUser()
	id := func(k nkeys.KeyPair) string { public, _ := k.PublicKey(); return public }
	resolver := &server.MemAccResolver{}
	for _, a := range []nkeys.KeyPair{account, system} {
		claims := jwt.NewAccountClaims(id(a))
		if a == account {
			claims.Limits.JetStreamTieredLimits = jwt.JetStreamTieredLimits{"R1": {MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}}
		}
		token, err := claims.Encode(operator)
		if err == nil {
			err = resolver.Store(id(a), token)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	token, err := jwt.NewUserClaims(id(user)).Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	seed, _ := user.Seed()
	creds, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		t.Fatal(err)
	}
	c := Defaults()
	c.NATSURL = natstest.Run(t, &server.Options{
		TrustedKeys: []string{id(operator)}, AccountResolver: resolver, SystemAccount: id(system), JetStream: true, StoreDir: t.TempDir(),
	}).ClientURL()
	c.NATSCreds = mustWrite(t, t.TempDir(), "worker.creds", creds)
	for _, f := range jetStreamOf(t, c) {
		if f.State == FindingFault {
			t.Errorf("%s: %s", f.What, f.Detail)
		}
	}
	c.Replicas = 3
	if found := jetStreamOf(t, c); found[0].State != FindingFault || !strings.Contains(found[0].Detail, "R3") {
		t.Errorf("an account without a tier for three replicas: %+v", found)
	}
}
