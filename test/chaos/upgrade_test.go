package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// oldNATS is the release that the cluster is upgraded from: the last one with
// all that a worker needs before the one in go.mod.
const oldNATS = "v2.14.9"

// TestRollingUpgrade upgrades a cluster under load, node by node (F14).
func TestRollingUpgrade(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of make chaos-short: it builds another nats-server; make chaos runs it")
	}
	w := newWorld(t, options{nodes: 3, server: oldServer(t)})
	before := w.versions()
	seed := number(t, "CHAOS_SEED", uint64(rand.Uint32()))
	w.trial("three nats-servers, upgraded", seed, func(w *world) map[string]int {
		time.Sleep(3 * time.Second)
		for _, node := range w.servers {
			w.settle()
			start := time.Now()
			w.disrupted()
			node.signal(syscall.SIGTERM)
			<-node.ended()
			node.path = program(t, "nats-server")
			if err := node.start(); err != nil {
				t.Error(err)
			}
			w.settle()
			w.span("NATS node upgraded", start)
			time.Sleep(2 * time.Second)
		}
		return nil
	})
	after := w.versions()
	for i := range after {
		if "v"+before[i] != oldNATS || before[i] == after[i] {
			t.Errorf("node %d was %s and is %s", i+1, before[i], after[i])
		}
	}
}

// oldServer builds it, in a module of its own.
func oldServer(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for i, args := range [][]string{
		{"mod", "init", "old"},
		{"get", "github.com/nats-io/nats-server/v2@" + oldNATS},
		{"build", "-o", "nats-server", "github.com/nats-io/nats-server/v2"},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil && i == 1 {
			t.Skipf("nats-server %s can't be had: %v\n%s", oldNATS, err, out)
		} else if err != nil {
			t.Fatalf("go %s: %v\n%s", args[0], err, out)
		}
	}
	return filepath.Join(dir, "nats-server")
}

// versions are those that the servers say they are.
func (w *world) versions() (all []string) {
	w.t.Helper()
	for _, p := range w.natsProxies {
		nc, err := nats.Connect("nats://" + p.Upstream)
		if err != nil {
			w.t.Fatal(err)
		}
		all = append(all, nc.ConnectedServerVersion())
		nc.Close()
	}
	return all
}

// settle waits until every stream has a leader and followers that keep up.
func (w *world) settle() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for {
		why := w.unsettled(ctx)
		if why == "" {
			return
		}
		if ctx.Err() != nil {
			w.t.Fatalf("the cluster doesn't settle: %s", why)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (w *world) unsettled(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	n := 0
	infos := w.js.ListStreams(ctx)
	for info := range infos.Info() {
		n++
		if why := lagging(info); why != "" {
			return why
		}
	}
	if infos.Err() != nil {
		return infos.Err().Error()
	}
	if n == 0 {
		return "no streams"
	}
	return ""
}

func lagging(info *jetstream.StreamInfo) string {
	if info.Cluster == nil || info.Cluster.Name == "" {
		return ""
	}
	if info.Cluster.Leader == "" || len(info.Cluster.Replicas) != info.Config.Replicas-1 {
		return info.Config.Name + " has no leader"
	}
	var behind []string
	for _, peer := range info.Cluster.Replicas {
		if !peer.Current || peer.Offline {
			behind = append(behind, peer.Name)
		}
	}
	if len(behind) > 0 {
		return fmt.Sprintf("%s lags on %s", info.Config.Name, strings.Join(behind, ", "))
	}
	return ""
}
