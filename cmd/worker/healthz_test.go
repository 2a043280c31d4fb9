package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadyURL(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		":8080":            "http://localhost:8080/readyz",
		"0.0.0.0:9000":     "http://localhost:9000/readyz",
		"[::]:9000":        "http://localhost:9000/readyz",
		"127.0.0.1:8080":   "http://127.0.0.1:8080/readyz",
		"[::1]:8080":       "http://[::1]:8080/readyz",
		"worker.test:8080": "http://worker.test:8080/readyz",
	} {
		if got, err := readyURL(addr); got != want || err != nil {
			t.Errorf("%s: %s, %v, want %s", addr, got, err, want)
		}
	}
	if _, err := readyURL("8080"); err == nil {
		t.Error("8080 is no address, and passed")
	}
}

func TestAskHealth(t *testing.T) {
	t.Parallel()
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte("ready or not\n"))
	}))
	if answer, err := askHealth(t.Context(), server.URL); answer != "ready or not" || err != nil {
		t.Errorf("200: %q, %v", answer, err)
	}
	status = http.StatusServiceUnavailable
	if _, err := askHealth(t.Context(), server.URL); err == nil || err.Error() != "503 Service Unavailable: ready or not" {
		t.Errorf("503: %v", err)
	}
	server.Close()
	if _, err := askHealth(t.Context(), server.URL); err == nil {
		t.Error("nobody answers, and it is healthy")
	}
}

// The worker is asked where its configuration has it listen, a fault of another setting or not.
func TestHealthzAsksWhereTheWorkerListens(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" {
			_, _ = w.Write([]byte("ready\n"))
		}
	}))
	t.Cleanup(server.Close)
	addr := strings.TrimPrefix(server.URL, "http://")
	file := filepath.Join(t.TempDir(), "worker.yaml")
	if err := os.WriteFile(file, []byte("http-addr: "+addr+"\nno-such-setting: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--config", file}, {"--http-addr", addr}} {
		var out output
		cmd := root()
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		cmd.SetArgs(append([]string{"healthz"}, args...))
		if err := cmd.ExecuteContext(t.Context()); err != nil || out.String() != "ready\n" {
			t.Errorf("%v: %q, %v", args, out.String(), err)
		}
	}
}
