package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho/zohotest"
)

// memoryGroup is a control group of processes that share a limit of memory.
type memoryGroup struct {
	t                   *testing.T
	procs, usage, limit string
}

// newMemoryGroup makes a control group without a limit. Who may not is skipped.
func newMemoryGroup(t *testing.T) memoryGroup {
	t.Helper()
	for _, version := range []struct{ root, usage, limit, swap string }{
		{"/sys/fs/cgroup", "memory.current", "memory.max", "memory.swap.max"},
		{"/sys/fs/cgroup/memory", "memory.usage_in_bytes", "memory.limit_in_bytes", ""},
	} {
		dir := filepath.Join(version.root, fmt.Sprintf("zoho-worker-test-%d", os.Getpid()))
		if os.Mkdir(dir, 0o700) != nil {
			continue
		}
		t.Cleanup(func() {
			eventually(t, "the control group is empty", func() bool { return syscall.Rmdir(dir) == nil })
		})
		g := memoryGroup{t, filepath.Join(dir, "cgroup.procs"), filepath.Join(dir, version.usage), filepath.Join(dir, version.limit)}
		if set(g.limit, fmt.Sprint(1<<40)) != nil {
			continue // this version's controller is not here
		}
		if version.swap != "" {
			_ = set(filepath.Join(dir, version.swap), "0")
		}
		return g
	}
	t.Skip("no control group can be made here")
	return memoryGroup{}
}

// start runs the worker in the group.
func (g memoryGroup) start(r *rig) *process {
	g.t.Helper()
	return r.start(exec.Command("/bin/sh", "-c", `echo $$ >"$0" && exec "$1" run`, g.procs, binary(g.t, failpointBuild)))
}

// squeeze limits the group to half of what it uses now. Where the kernel
// refuses, because it can't take that much away, the limit is what is used: the
// next page is one too many.
func (g memoryGroup) squeeze() {
	g.t.Helper()
	used, err := os.ReadFile(g.usage)
	if err != nil {
		g.t.Fatal(err)
	}
	var bytes int
	if _, err := fmt.Sscan(string(used), &bytes); err != nil {
		g.t.Fatal("memory in use: ", err)
	}
	if set(g.limit, fmt.Sprint(bytes/2)) != nil {
		_ = set(g.limit, fmt.Sprint(bytes))
	}
}

// widen takes the limit away.
func (g memoryGroup) widen() {
	g.t.Helper()
	if err := set(g.limit, fmt.Sprint(1<<40)); err != nil {
		g.t.Fatal(err)
	}
}

// set writes to a file that is there.
func set(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// F7: the kernel kills a worker for want of memory, twice, with large answers
// coming in and inserts in flight between them. Another one, with more memory, does
// the rest: no insert is sent twice, and all are answered.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	group := newMemoryGroup(t)
	r := newRig(t, zohotest.Options{})
	const places, inserts, kills = 60, 300, 2
	r.demo(places)
	for range 180 {
		r.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Large", "Description": strings.Repeat("x", 4<<10)})
	}
	r.Zoho.SetLatency(100 * time.Millisecond)
	w := r.workload()
	for range inserts {
		w.publishAll(
			w.add(doc{"id": w.id("post"), "method": "POST", "url": "/v8/Leads"}, false),
			w.add(doc{"id": w.id("get"), "method": "GET", "url": "/v8/Leads", "query": doc{"fields": "Last_Name,Description"}}, false),
		)
	}
	for range kills {
		group.widen()
		p := group.start(r)
		sent := len(r.posts())
		eventually(t, "inserts are under way", func() bool { return len(r.posts()) >= sent+places/2 })
		eventually(t, "the worker is killed", func() bool {
			group.squeeze()
			return !p.alive()
		})
		p.died()
		t.Logf("killed, when %d inserts had been sent", len(r.posts()))
	}
	if r.backlog() == 0 {
		t.Fatal("everything was done before the worker was killed")
	}
	p := r.process()
	got := w.verify()
	t.Logf("%d outcomes are unknown", len(got.unknown))
	if n := len(got.unknown); n > kills*places {
		t.Errorf("%d outcomes are unknown, of %d at most in flight", n, kills*places)
	}
	p.signal(syscall.SIGTERM)
	p.exited()
}

// F39: answers of 100 MB, as they are and zipped, are too large, and the
// worker's memory doesn't grow with them.
func TestMemoryOfLargeAnswers(t *testing.T) {
	t.Parallel()
	r := newRig(t, zohotest.Options{})
	r.demo(4)
	p := r.process("CALL_TIMEOUT=30s", "STOP_TIMEOUT=40s")
	r.started(1)
	ask := func(prefix string, n int) (ids []string) {
		for range n {
			ids = append(ids, r.id(prefix))
			r.publish("demo", list(ids[len(ids)-1]))
		}
		return ids
	}
	for _, id := range ask("small", 50) {
		wantStatus(t, r.await("demo", id), 200)
	}
	before := p.mostMemory()
	const large = 4
	for name, fault := range map[string]zohotest.Fault{"huge": zohotest.HugeBody(100 << 20), "bomb": zohotest.GzipBomb(100 << 20)} {
		r.Zoho.Inject(fault.On("GET", "/crm/v8/Leads").Repeat(large))
		for _, id := range ask(name, large) {
			wantCode(t, r.await("demo", id), envelope.TooLarge)
		}
	}
	grown := p.mostMemory() - before
	t.Logf("%d MiB before, %d MiB more at most", before>>20, grown>>20)
	if grown > 32<<20 {
		t.Errorf("the worker grew by %d MiB", grown>>20)
	}
	p.signal(syscall.SIGTERM)
	p.exited()
}

// mostMemory is what the process has had in memory at most, in bytes.
func (p *process) mostMemory() int {
	p.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kilobytes int
	if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
		p.t.Fatal("VmHWM: ", err)
	}
	return kilobytes << 10
}
