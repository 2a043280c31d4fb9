package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The Python and Node programs of docs/clients.md run as they stand. NODE_MODULES is
// the node_modules that has what the second needs; REQUIRE_CLIENTS=python,js insists on
// each that it names. CI insists on Node: no package of Debian's has nats-py.
func TestClientsOfTheDocs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		language, file, command string
		there                   func() error
		install                 string
	}{
		{"python", "add_lead.py", "python3", exec.Command("python3", "-c", "import nats").Run, "pip install nats-py"},
		{"js", "add-lead.mjs", "node", func() error {
			_, err := os.Stat(filepath.Join(os.Getenv("NODE_MODULES"), "@nats-io", "jetstream"))
			return err
		}, "npm install @nats-io/transport-node @nats-io/jetstream, and NODE_MODULES names its directory"},
	} {
		t.Run(c.language, func(t *testing.T) {
			t.Parallel()
			program := ""
			for _, m := range fenced.FindAllStringSubmatch(read(t, "docs/clients.md"), -1) {
				if m[1] == c.language {
					program = m[2]
				}
			}
			if !strings.Contains(program, "nats://127.0.0.1:4222") {
				t.Fatalf("no program in %s: %s", c.language, program)
			}
			if err := c.there(); err != nil && slices.Contains(strings.Split(os.Getenv("REQUIRE_CLIENTS"), ","), c.language) {
				t.Fatalf("%v: %s", err, c.install)
			} else if err != nil {
				t.Skip("its library of NATS isn't there: " + c.install)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			nc, stop, err := sandbox(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			defer nc.Close()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, c.file), []byte(strings.ReplaceAll(program, "nats://127.0.0.1:4222", nc.ConnectedUrl())), 0o600); err != nil {
				t.Fatal(err)
			}
			if modules := os.Getenv("NODE_MODULES"); modules != "" {
				if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // the second time, the first one's answer
				run := exec.CommandContext(ctx, c.command, c.file)
				run.Dir = dir
				if out, err := run.CombinedOutput(); err != nil || string(out) != "201\n" {
					t.Errorf("%v: %s", err, out)
				}
			}
		})
	}
}
