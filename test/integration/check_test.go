package integration

import (
	"log/slog"
	"strings"
	"testing"

	"zoho-worker/internal/app"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

func findings(t *testing.T, c app.Config) (faults, all string) {
	t.Helper()
	for _, f := range app.Check(t.Context(), c, slog.New(slog.DiscardHandler)) {
		line := f.What + ": " + string(f.State) + ": " + f.Detail + " -> " + f.Mend + "\n"
		all += line
		if f.State == app.FindingFault {
			faults += line
			if f.Mend == "" {
				t.Errorf("%s is a fault, and nothing says how to mend it", line)
			}
		}
	}
	t.Log(all)
	return faults, all
}

func TestCheck(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(10)
	faults, all := findings(t, r.config())
	if faults != "" {
		t.Fatalf("faults in a rig that works:\n%s", faults)
	}
	for _, want := range []string{"configuration: ok", "NATS: ok: ", "JetStream: ok", "connections: ok: 1 active of 1", "Redis: ok", "Redis lock: ok", r.ZohoURL + "/oauth/serverinfo answers"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not told", want)
		}
	}
	// Everything that is wrong is told at once; nobody's fault hides another's.
	c := r.config()
	c.NATSURL, c.RedisURL = "nats://127.0.0.1:1", secret.New("redis://:PLANTED@127.0.0.1:1")
	c.ZohoAccountsURL, c.StopTimeout = "http://127.0.0.1:1", c.CallTimeout
	faults, all = findings(t, c)
	for _, want := range []string{"configuration: fault: --stop-timeout", "NATS: fault: ", "Redis: fault: ", "Zoho us: fault: http://127.0.0.1:1/oauth/serverinfo"} {
		if !strings.Contains(faults, want) {
			t.Errorf("%q is not told", want)
		}
	}
	if strings.Contains(all, "PLANTED") {
		t.Error("a password is shown")
	}
	// More replicas than there are servers, a key that is gone, a revoked connection.
	c = r.config()
	c.Replicas, c.EncryptionKeys = 3, secret.Generate()
	faults, all = findings(t, c)
	for _, want := range []string{"JetStream replicas: fault", "connection demo: fault"} {
		if !strings.Contains(faults, want) {
			t.Errorf("%q is not told", want)
		}
	}
	if want := "stream replicas: warning: --replicas says 3, there are: ZOHO_REQUESTS 1, "; !strings.Contains(all, want) {
		t.Errorf("%q is not told", want)
	}
	r.markRevoked("demo", "it is gone")
	faults, all = findings(t, r.config())
	if faults != "" || !strings.Contains(all, "connection demo: warning: revoked since ") || !strings.Contains(all, "connections: ok: 0 active of 1") {
		t.Errorf("of a revoked connection it is told\n%s", all)
	}
	// Without connections no data centre is in use. Whether there are any, NATS knows.
	c = r.config()
	c.ZohoAccountsURL, c.ZohoAPIURL = "", ""
	if _, all = findings(t, c); !strings.Contains(all, "Zoho: ok: no connection is active") {
		t.Errorf("of Zoho, with no connection that is active, it is told\n%s", all)
	}
	c.NATSURL = "nats://127.0.0.1:1"
	if _, all = findings(t, c); !strings.Contains(all, "Zoho: warning: not tried") {
		t.Errorf("of Zoho, without NATS, it is told\n%s", all)
	}
	c.NATSURL = newRig(t, zohotest.Options{}).NATSURL
	if _, all = findings(t, c); !strings.Contains(all, "Zoho: ok: no connection yet") {
		t.Errorf("of Zoho, with no connection, it is told\n%s", all)
	}
}
