package chaos

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// disk is a file system in a file of its own. What was written and not synced is
// in the page cache above it and not in the file: so a copy of the file is what
// a power cut leaves.
type disk struct {
	t          testing.TB
	dir, image string
	cuts       int
}

// newDisk mounts one. Who may not is skipped.
func newDisk(t testing.TB) *disk {
	t.Helper()
	d := &disk{t: t, dir: filepath.Join(t.TempDir(), "disk"), image: filepath.Join(t.TempDir(), "image-0")}
	f, err := os.Create(d.image)
	if err == nil {
		err = f.Truncate(256 << 20)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Mkdir(d.dir, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Skipf("no file system can be made here: %v %s", err, out)
	}
	if err := d.mount(); err != nil {
		t.Skip("no file system can be mounted here: ", err)
	}
	t.Cleanup(func() { _ = exec.Command("umount", d.dir).Run() })
	return d
}

// mount has the kernel write by itself as rarely as it can.
func (d *disk) mount() error {
	out, err := exec.Command("mount", "-o", "loop,commit=900", d.image, d.dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// cut is a power cut: who wrote to the disk is dead by now. What is there then
// is the file as it is at this moment.
func (d *disk) cut() {
	d.t.Helper()
	d.cuts++
	left := filepath.Join(filepath.Dir(d.image), fmt.Sprint("image-", d.cuts))
	if err := copyFile(d.image, left); err != nil {
		d.t.Fatal(err)
	}
	if out, err := exec.Command("umount", d.dir).CombinedOutput(); err != nil {
		d.t.Fatalf("umount: %v %s", err, out)
	}
	_ = os.Remove(d.image)
	d.image = left
	if err := d.mount(); err != nil {
		d.t.Fatal(err)
	}
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// TestPowerLoss cuts the power of a machine with all NATS servers and all
// workers, under load, again and again (F16). With sync_interval: always, as the
// shipped configuration has it, the books are balanced all the same.
func TestPowerLoss(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of make chaos-short: two minutes; make chaos runs it")
	}
	for name, nodes := range map[string]int{"one nats-server, power cut": 1, "three nats-servers, power cut": 3} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			w := newWorld(t, options{nodes: nodes, stores: d.dir})
			w.zoho.SetLatency(200 * time.Millisecond)
			seed := number(t, "CHAOS_SEED", uint64(rand.Uint32()))
			random := rand.New(rand.NewPCG(seed, 0))
			w.trial(name, seed, func(w *world) map[string]int {
				for range 4 {
					time.Sleep(2*time.Second + time.Duration(random.Int64N(int64(2*time.Second))))
					start := time.Now()
					ends := make([]func(), 0, nodes+1)
					for i := range nodes {
						up, ok := killNode(w, strike{pick: i})
						if !ok {
							t.Error("NATS was down already")
							continue
						}
						ends = append(ends, up)
					}
					workers, _ := killAllWorkers(w, strike{})
					d.cut()
					for _, up := range append(ends, workers) {
						up()
					}
					w.settle()
					w.span("NATS and workers: power cut", start)
				}
				return nil
			})
		})
	}
}

// TestPowerLossControl shows that the cut of TestPowerLoss is one: with NATS' own
// default for sync_interval, what was acknowledged a moment ago is gone.
func TestPowerLossControl(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of make chaos-short, like TestPowerLoss; make chaos runs it")
	}
	const n = 500
	for sync, loses := range map[string]bool{"always": false, "2m": true} {
		d := newDisk(t)
		w := &world{options: options{nodes: 1, stores: d.dir, sync: sync}, t: t, dir: t.TempDir()}
		w.startNATS(program(t, "nats-server"), 1)
		nc, err := nats.Connect("nats://"+w.natsProxies[0].Upstream, nats.RetryOnFailedConnect(true), nats.ReconnectBufSize(-1),
			nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		create := func(ctx context.Context) error {
			_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "S", Subjects: []string{"s"}})
			return err
		}
		until(ctx, t, create)
		for range n {
			if _, err := js.Publish(ctx, "s", []byte("acknowledged")); err != nil {
				t.Fatal(err)
			}
		}
		w.servers[0].kill()
		d.cut()
		if err := w.servers[0].start(); err != nil {
			t.Fatal(err)
		}
		until(ctx, t, create) // where the stream itself is gone, too
		stream, err := js.Stream(ctx, "S")
		if err != nil {
			t.Fatal(err)
		}
		left := stream.CachedInfo().State.Msgs
		t.Logf("sync_interval %s: %d of %d acknowledged messages are left", sync, left, n)
		if (left < n) != loses {
			t.Errorf("sync_interval %s: %d of %d acknowledged messages are left", sync, left, n)
		}
	}
}
