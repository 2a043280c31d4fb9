// Package dockerfile checks the Dockerfile by the linter of BuildKit, whose modules
// do not go together with those of Kubernetes: so it is a module of its own.
package dockerfile

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/subrequests/lint"
	"github.com/opencontainers/go-digest"
)

const root = "../../.."

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// version is a tag that says one; distroless has none, as the Dockerfile says.
var version = regexp.MustCompile(`^[^:@]+:v?\d+\.\d+(\.\d+)?[0-9A-Za-z._-]*(@sha256:[0-9a-f]{64})?$|^gcr\.io/distroless/static-debian12:nonroot$`)

// noRegistry says of every base image that it is a plain Linux: nothing is fetched.
type noRegistry struct{}

func (noRegistry) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	return ref, digest.FromString(ref), []byte(`{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/usr/bin"]}}`), nil
}

// lintDockerfile is `docker build --check`.
func lintDockerfile(t *testing.T, text string) *lint.LintResults {
	t.Helper()
	source := llb.NewSourceMap(nil, "Dockerfile", "dockerfile", []byte(text))
	source.Definition = &llb.Definition{}
	results, err := dockerfile2llb.DockerfileLint(t.Context(), []byte(text), dockerfile2llb.ConvertOpt{SourceMap: source, MetaResolver: noRegistry{}})
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func TestDockerfileIsClean(t *testing.T) {
	results := lintDockerfile(t, read(t, "Dockerfile"))
	if results.Error != nil {
		t.Error(results.Error.Message)
	}
	for _, w := range results.Warnings {
		t.Errorf("%s: %s (%s)", w.RuleName, w.Detail, w.Location)
	}
	// What the linter lets pass would prove nothing otherwise.
	if bad := lintDockerfile(t, "FROM alpine as Build\nENV PASSWORD=x\nCMD worker run\n"); len(bad.Warnings) < 3 {
		t.Errorf("the linter found only %v in a bad file", bad.Warnings)
	}
}

func TestDockerfilePins(t *testing.T) {
	text := read(t, "Dockerfile")
	args := regexp.MustCompile(`(?m)^ARG \w+_IMAGE=(\S+)$`).FindAllStringSubmatch(text, -1)
	if len(args) != 2 {
		t.Fatalf("base images: %v", args)
	}
	for _, a := range args {
		if !version.MatchString(a[1]) {
			t.Errorf("%s has no version", a[1])
		}
	}
	for _, f := range regexp.MustCompile(`(?m)^FROM .*$`).FindAllString(text, -1) {
		if !strings.Contains(f, "_IMAGE}") && !strings.Contains(f, "FROM build AS") {
			t.Errorf("%s: not one of the pinned base images", f)
		}
	}
	// The image's Go is the one that builds everywhere else.
	want := strings.TrimPrefix(strings.Fields(regexp.MustCompile(`(?m)^go .*$`).FindString(read(t, "go.mod")))[1], "go")
	if got := regexp.MustCompile(`GO_IMAGE=golang:(\d+\.\d+)`).FindStringSubmatch(text); got == nil || !strings.HasPrefix(want, got[1]) {
		t.Errorf("GO_IMAGE is %v, go.mod says %s", got, want)
	}
}

// Everything that the binary embeds or is made of goes into the builder's context.
func TestDockerfileCopiesWhatItBuilds(t *testing.T) {
	text := read(t, "Dockerfile")
	for _, tags := range []string{"production,grpcnotrace", "grpcnotrace"} {
		if !strings.Contains(text, "-tags "+tags+" ") {
			t.Errorf("no stage builds with %s", tags)
		}
		cmd := exec.Command("go", "list", "-deps", "-tags", tags, "-f", `{{if not .Standard}}{{.ImportPath}} {{join .EmbedFiles " "}}{{end}}`, "./cmd/worker")
		cmd.Dir = root
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range strings.Split(string(out), "\n") {
			path, ours := strings.CutPrefix(strings.TrimSpace(strings.SplitN(line+" ", " ", 2)[0]), "zoho-worker/")
			if !ours {
				continue
			}
			top, _, _ := strings.Cut(path, "/")
			if !strings.Contains(text, "\nCOPY "+top+" "+top+"\n") || !strings.Contains(read(t, ".dockerignore"), "\n!"+top+"\n") {
				t.Errorf("%s: the Dockerfile or .dockerignore leaves it out", path)
			}
			for _, file := range strings.Fields(line)[1:] {
				if strings.Contains(file, "testdata/") || strings.HasSuffix(file, "_test.go") {
					t.Errorf("%s embeds %s, which .dockerignore leaves out", path, file)
				}
			}
			// The sandbox is not for production: neither the servers nor the simulator.
			if tags != "grpcnotrace" && slices.Contains([]string{"internal/devbox", "internal/zoho/zohotest"}, path) {
				t.Errorf("the production binary holds %s", path)
			}
		}
		for _, server := range []string{"nats-io/nats-server", "alicebob/miniredis"} {
			if tags != "grpcnotrace" && strings.Contains(string(out), server) {
				t.Errorf("the production binary holds %s", server)
			}
		}
	}
}

// The same sources make the same binary, wherever they lie.
func TestBinaryIsReproducible(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: two builds")
	}
	flags := regexp.MustCompile(`-ldflags "(.*)" -o /out/worker`).FindStringSubmatch(read(t, "Dockerfile"))
	if flags == nil {
		t.Fatal("the Dockerfile builds otherwise than this test thinks")
	}
	build := func(dir string) string {
		out := filepath.Join(t.TempDir(), "worker")
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-tags", "production,grpcnotrace",
			"-ldflags", strings.ReplaceAll(flags[1], "${VERSION}", "1.2.3"), "-o", out, "./cmd/worker")
		cmd.Dir = dir
		cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		sum, err := exec.Command("sha256sum", out).Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(sum[:64])
	}
	elsewhere := filepath.Join(t.TempDir(), "somewhere", "else")
	copying := exec.Command("sh", "-c", `mkdir -p "$1" && cp -R go.mod go.sum cmd internal schemas "$1"`, "sh", elsewhere)
	copying.Dir = root
	if text, err := copying.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if here, there := build(root), build(elsewhere); here != there {
		t.Errorf("two directories, two binaries: %s, %s", here, there)
	}
}
