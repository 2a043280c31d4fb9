package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that runs beside the harness, logging to a file.
type process struct {
	name string
	cmd  *exec.Cmd
	log  *os.File
	in   io.Closer
	gone chan struct{}
}

// launch starts a program whose output goes to dir/name.log; with say it is
// waited for to print a line, which is returned.
func launch(dir, name string, say bool, env []string, path string, args ...string) (*process, string, error) {
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, "", err
	}
	p := &process{name: name, cmd: exec.Command(path, args...), log: log, gone: make(chan struct{})}
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}, env...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	var line string
	var out io.ReadCloser
	if say {
		p.cmd.Stdout = nil
		if out, err = p.cmd.StdoutPipe(); err != nil {
			return nil, "", err
		}
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, "", err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("start %s: %w", name, err)
	}
	if say {
		if line, err = bufio.NewReader(out).ReadString('\n'); err != nil {
			_ = p.cmd.Process.Kill()
			return nil, "", fmt.Errorf("%s said nothing: %w", name, err)
		}
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.gone)
	}()
	return p, strings.TrimSpace(line), nil
}

// stop ends the process, by force where it doesn't hear.
func (p *process) stop() {
	if p == nil {
		return
	}
	_ = p.in.Close()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.gone:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.gone
	}
	_ = p.log.Close()
}

// pause stops the process with SIGSTOP until SIGCONT, and returns when each of its
// threads has stopped: until then it goes on working.
func (p *process) pause() error {
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		running := false
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid))
		if err != nil {
			return err
		}
		for _, thread := range threads {
			fields, err := stat(thread)
			running = running || err != nil || fields[0] != "T" // one that just ended can't be read
		}
		if len(threads) > 0 && !running {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s did not stop within %s of SIGSTOP", p.name, patience)
		}
	}
}

// tail is the end of what the process logged.
func (p *process) tail() string {
	data, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-2000):])
}

// stat is what a file like /proc/PID/stat says behind the name: state, ppid, …
func stat(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	// The name is in parentheses and may hold anything, so the last one ends it.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 13 {
		return nil, fmt.Errorf("%s is short", file)
	}
	return fields, nil
}

// cpu is the processor time that the process has had, user and system.
func (p *process) cpu() (time.Duration, error) {
	fields, err := stat(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var ticks int64
	for _, field := range fields[11:13] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil // USER_HZ is 100 wherever Linux runs
}

// memory is the process's resident set now and at its peak, in bytes.
func (p *process) memory() (now, peak int64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	read := func(name string) int64 {
		_, after, _ := strings.Cut(string(data), "\n"+name+":")
		fields := strings.Fields(after)
		if len(fields) == 0 {
			return 0
		}
		n, _ := strconv.ParseInt(fields[0], 10, 64)
		return n << 10
	}
	return read("VmRSS"), read("VmHWM"), nil
}
