package chaos

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestChaosClocks is TestChaosOneServer with workers whose clocks are wrong: one
// is ten minutes ahead, one ten minutes behind. The books are the same: no
// insert twice, no refresh too many, no deadline that hasn't passed, no answer
// that contradicts one.
func TestChaosClocks(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of make chaos-short: it builds a worker with a standard library of its own; make chaos runs it")
	}
	const off = 10 * time.Minute
	chaos(t, "one nats-server, clocks 10 min off", 1, func(o *options) {
		o.worker, o.clocks = shiftedWorker(t), []time.Duration{off, -off, 0}
	})
}

// clockShift is the variable by which shiftedWorker is told how many seconds its clock is off.
const clockShift = "CLOCK_SHIFT"

func (w *world) clock(worker int) string {
	if worker >= len(w.clocks) {
		return clockShift + "="
	}
	return fmt.Sprintf("%s=%d", clockShift, int(w.clocks[worker].Seconds()))
}

// clockError is how wrong what a worker says of the time may be.
func (w *world) clockError() (most time.Duration) {
	for _, off := range w.clocks {
		most = max(most, off.Abs())
	}
	return most
}

// shiftedWorker is a worker for which time.Now, wherever it is called, is off by
// CLOCK_SHIFT seconds; its monotonic clock is right. It is the same program with
// another time.Now, put in its place by the linker's overlay.
func shiftedWorker(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	original := filepath.Join(runtime.GOROOT(), "src", "time", "time.go") //nolint:staticcheck // the one that builds this
	source, err := os.ReadFile(original)
	if err != nil {
		t.Fatal(err)
	}
	text := string(source)
	for _, change := range [][2]string{
		{"import (", "import (\n\t\"syscall\""},
		{"func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n", "func Now() Time {\n\tsec, nsec, mono := runtimeNow()\n\tsec += clockShift\n"},
	} {
		if strings.Count(text, change[0]) != 1 {
			t.Fatalf("this Go's time.Now is another: it has no %q", change[0])
		}
		text = strings.Replace(text, change[0], change[1], 1)
	}
	text += `
var clockShift = func() (n int64) {
	text, _ := syscall.Getenv("` + clockShift + `")
	sign := int64(1)
	for _, c := range text {
		if c == '-' {
			sign = -1
		} else {
			n = n*10 + int64(c-'0')
		}
	}
	return sign * n
}()
`
	changed, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{original: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{changed: []byte(text), overlay: replace} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	worker := filepath.Join(dir, "worker")
	build := exec.Command("go", "build", "-tags", "production", "-overlay", overlay, "-o", worker, "./cmd/worker")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, off := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
		if got := clockOf(t, worker, off); (got - off).Abs() > time.Minute {
			t.Fatalf("the clock is off by %s, not by %s", got, off)
		}
	}
	return worker
}

// clockOf is how far the clock of the program is off: a line of its log says.
func clockOf(t *testing.T, worker string, off time.Duration) time.Duration {
	t.Helper()
	ports := freePorts(t, 2)
	cmd := exec.Command(worker, "run")
	cmd.Env = []string{
		fmt.Sprintf("%s=%d", clockShift, int(off.Seconds())), fmt.Sprintf("NATS_URL=nats://127.0.0.1:%d", ports[0]),
		fmt.Sprintf("HTTP_ADDR=127.0.0.1:%d", ports[1]), "REDIS_URL=", "ZOHO_CLIENT_ID=1000.X", "ZOHO_CLIENT_SECRET=x",
		"ENCRYPTION_KEYS=k1:" + strings.Repeat("A", 43) + "=", "LOG_FORMAT=json",
	}
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var line struct{ Time time.Time }
	if err := json.NewDecoder(out).Decode(&line); err != nil {
		t.Fatal("the worker's first line: ", err)
	}
	return time.Until(line.Time)
}
