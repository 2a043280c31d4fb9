package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// program is a server or a worker that runs beside the harness.
type program struct {
	*exec.Cmd
	log  string
	gone chan struct{}
}

// launch starts a program that logs to a file of its own and ends with the context.
func (w *world) launch(ctx context.Context, name string, env []string, path string, args ...string) (*program, error) {
	p := &program{exec.CommandContext(ctx, path, args...), filepath.Join(w.dir, name+".log"), make(chan struct{})}
	file, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // the process has its own
	p.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	p.Stdout, p.Stderr = file, file
	p.Cancel = func() error { return p.Process.Signal(syscall.SIGTERM) }
	p.WaitDelay = 5 * time.Second
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		_ = p.Wait()
		close(p.gone)
	}()
	return p, nil
}

// usage is what a process has had of the machine.
type usage struct {
	cpu      time.Duration
	resident int64 // bytes
}

func (p *program) usage() (usage, error) {
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
	if err != nil {
		return u, err
	}
	// After the name in parentheses: utime is the 12th field, stime the 13th, rss the 22nd.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 22 {
		return u, fmt.Errorf("/proc/%d/stat is short", p.Process.Pid)
	}
	var user, system, pages int64
	if _, err := fmt.Sscan(strings.Join([]string{fields[11], fields[12], fields[21]}, " "), &user, &system, &pages); err != nil {
		return u, err
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Linux runs
	return usage{time.Duration(user+system) * tick, pages * int64(os.Getpagesize())}, nil
}

// workersUsage is that of all workers together.
func (w *world) workersUsage() (sum usage, err error) {
	for _, p := range w.workers {
		u, err := p.usage()
		if err != nil {
			return sum, err
		}
		sum.cpu += u.cpu
		sum.resident += u.resident
	}
	return sum, nil
}
