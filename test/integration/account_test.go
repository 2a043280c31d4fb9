package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"zoho-worker/internal/connection/natstest"
	"zoho-worker/internal/zoho/zohotest"
)

// An account that may have fewer consumers than a worker would like has its streams all
// the same, and the lanes take turns at the consumers: one that is idle gives its own up.
func TestAccountOfFewConsumers(t *testing.T) {
	t.Parallel()
	const most, lanes = 14, 20
	r := newRig(t, zohotest.Options{})
	file := filepath.Join(t.TempDir(), "nats.conf")
	text := fmt.Sprintf(`
		jetstream { store_dir: %q }
		accounts { A { jetstream { max_consumers: %d }, users: [{user: a, password: a}] } }
		no_auth_user: a
	`, t.TempDir(), most)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	options, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	options.Port = server.RANDOM_PORT
	r.moveTo(natstest.Run(t, options).ClientURL(), nats.UserInfo("a", "a"))
	for i := range lanes {
		org, name := fmt.Sprint(770_000_000+i), fmt.Sprint("org-", i)
		r.Zoho.AddOrg(zohotest.Org{ID: org, Name: name, Concurrency: 2})
		r.Zoho.Seed(org, "Leads", map[string]any{"Last_Name": "Seed"})
		r.connect(name, org, 2)
		r.publish(name, list(name))
	}
	r.worker()
	for _, response := range r.awaitAll("*", lanes) {
		wantStatus(t, response, 200)
	}
	// A lane that waits for a consumer tries every second, and says so now and then.
	if n := strings.Count(r.logs.text.String(), `level=WARN msg="lane not served for a moment"`); n == 0 || n > 3*(lanes-most) {
		t.Errorf("%d lines say that a lane is not served", n)
	}
}
