package chaos

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// process is a program in a process of its own, which logs to a file and can be
// ended and started again.
type process struct {
	name string
	path string
	args []string
	env  []string
	log  *os.File

	mu     sync.Mutex
	cmd    *exec.Cmd
	exited chan struct{}
}

func newProcess(t testing.TB, dir, name, path string, args, env []string) *process {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{name: name, path: path, args: args, env: env, log: log}
	t.Cleanup(func() {
		p.kill()
		_ = log.Close()
	})
	return p
}

// start starts it, unless it runs.
func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return nil
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, p.env...)
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = attributes()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	exited := make(chan struct{})
	p.cmd, p.exited = cmd, exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	return nil
}

func (p *process) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// alive is running for callers without the lock.
func (p *process) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running()
}

// signal reports whether there was a process to signal.
func (p *process) signal(s syscall.Signal) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running() && p.cmd.Process.Signal(s) == nil
}

// kill ends it by SIGKILL and waits for its end.
func (p *process) kill() bool {
	if !p.signal(syscall.SIGKILL) {
		return false
	}
	<-p.ended()
	return true
}

func (p *process) ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exited
}

// terminate asks it to stop and returns what went wrong.
func (p *process) terminate(budget time.Duration) error {
	p.signal(syscall.SIGTERM)
	select {
	case <-p.ended():
	case <-time.After(budget):
		return fmt.Errorf("%s has not stopped within %s", p.name, budget)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s stopped with %s", p.name, p.cmd.ProcessState)
	}
	return nil
}

// end says how it ended, and what it logged last.
func (p *process) end() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := os.ReadFile(p.log.Name())
	if err != nil {
		return fmt.Sprintf("%s ended by itself with %s: %v", p.name, p.cmd.ProcessState, err)
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	return fmt.Sprintf("%s ended by itself with %s, after\n%s", p.name, p.cmd.ProcessState, strings.Join(lines[max(0, len(lines)-5):], "\n"))
}

// files is the number of files and connections that it has open.
func (p *process) files() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return 0, errors.New(p.name + " is not running")
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	return len(entries), err
}

// freePorts returns loopback ports that nobody listens on. They lie below those
// that the system gives to connections: what is stopped here for a while must find
// its port free when it comes back.
func freePorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	given.Lock()
	defer given.Unlock()
	for range 10_000 {
		if len(ports) == n {
			return ports
		}
		port := 16_000 + rand.IntN(16_000)
		if given.ports[port] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		_ = l.Close()
		given.ports[port] = true
		ports = append(ports, port)
	}
	t.Fatal("there are no free ports")
	return nil
}

// given are the ports of this run.
var given = struct {
	sync.Mutex
	ports map[int]bool
}{ports: map[int]bool{}}

// programs are the binaries, built once per run.
var programs struct {
	sync.Once
	dir string
	err error
}

func program(t testing.TB, name string) string {
	t.Helper()
	programs.Do(func() {
		if programs.dir, programs.err = os.MkdirTemp("", "zoho-chaos-bin-"); programs.err != nil {
			return
		}
		for _, b := range []struct{ dir, pkg, name string }{
			{"../..", "./cmd/worker", "worker"},
			{".", "github.com/nats-io/nats-server/v2", "nats-server"},
		} {
			build := exec.Command("go", "build", "-o", filepath.Join(programs.dir, b.name), b.pkg)
			build.Dir = b.dir
			if out, err := build.CombinedOutput(); err != nil {
				programs.err = fmt.Errorf("build %s: %w\n%s", b.pkg, err, strings.TrimSpace(string(out)))
				return
			}
		}
	})
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	return filepath.Join(programs.dir, name)
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := results.write(); err != nil {
		fmt.Fprintln(os.Stderr, "write the report:", err)
		code = 1
	}
	if programs.dir != "" {
		_ = os.RemoveAll(programs.dir)
	}
	os.Exit(code)
}
