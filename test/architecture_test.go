package test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// arrows has a row for every package: what of ours it may import. The arrows point
// down the list of docs/design.md, "Packages"; a package without a row, or an arrow
// that isn't here, is a decision that somebody has to make.
var arrows = map[string][]string{
	"schemas":                      {},
	"internal/secret":              {},
	"internal/failpoint":           {},
	"internal/register":            {},
	"internal/lock":                {},
	"internal/connection/follow":   {"internal/register"},
	"internal/envelope":            {},
	"internal/zoho":                {"internal/envelope", "internal/secret"},
	"internal/zoho/zohotest":       {},
	"internal/connection":          {"internal/connection/follow", "internal/envelope", "internal/register", "internal/secret"},
	"internal/token":               {"internal/connection", "internal/connection/follow", "internal/lock", "internal/register", "internal/secret", "internal/trace", "internal/zoho"},
	"internal/consent":             {"internal/connection", "internal/register", "internal/secret", "internal/token", "internal/zoho"},
	"internal/dead":                {"internal/register"},
	"internal/event":               {"internal/connection", "internal/secret"},
	"internal/ledger":              {"internal/register"},
	"internal/relay":               {"internal/connection", "internal/envelope", "internal/failpoint", "internal/ledger", "internal/register", "internal/token", "internal/trace", "internal/zoho"},
	"internal/consumer":            {"internal/connection", "internal/consent", "internal/dead", "internal/envelope", "internal/event", "internal/failpoint", "internal/flow", "internal/lease", "internal/ledger", "internal/register", "internal/relay", "internal/token", "internal/trace", "internal/zoho"},
	"internal/flow":                {},
	"internal/lease":               {"internal/connection/follow", "internal/register"},
	"internal/inspect":             {"internal/connection", "internal/consent", "internal/consumer", "internal/envelope", "internal/flow", "internal/lease", "internal/ledger", "internal/register", "internal/relay", "internal/secret", "internal/token", "internal/zoho"},
	"internal/trace":               {},
	"internal/devbox":              {"internal/zoho/zohotest"},
	"internal/console":             {"internal/connection", "internal/consent", "internal/dead", "internal/consumer", "internal/envelope", "internal/flow", "internal/inspect", "internal/secret", "internal/token", "internal/zoho"},
	"internal/app":                 {"internal/connection", "internal/consent", "internal/event", "internal/console", "internal/consumer", "internal/envelope", "internal/inspect", "internal/ledger", "internal/lock", "internal/register", "internal/relay", "internal/secret", "internal/token", "internal/trace", "internal/zoho"},
	"bench":                        {"internal/connection", "internal/consumer", "internal/secret"},
	"bench/baseline":               {},
	"bench/bare":                   {},
	"bench/flow":                   {"internal/connection", "internal/consumer", "internal/secret", "internal/zoho/zohotest"},
	"internal/lock/redistest":      {},
	"internal/connection/natstest": {},
	"internal/register/storedtest": {},
}

// simulated are packages that no production code imports but the sandbox's own.
var simulated = []string{"internal/zoho/zohotest", "internal/devbox", "internal/lock/redistest", "internal/connection/natstest", "internal/register/storedtest"}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

// packages lists ours, without tests, built with the tags.
func packages(t *testing.T, tags string, patterns ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Deps", "-tags", tags}, patterns...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

const module = "zoho-worker/"

// The arrows of the design hold, in every build there is.
func TestArrows(t *testing.T) {
	t.Parallel()
	unused := map[string][]string{}
	for name, allowed := range arrows {
		unused[name] = slices.Clone(allowed)
	}
	for _, tags := range []string{"", "production", "failpoint"} {
		for _, p := range packages(t, tags, "./...") {
			name := strings.TrimPrefix(p.ImportPath, module)
			command := strings.HasPrefix(name, "cmd/")
			allowed, known := arrows[name]
			if !known && !command && !strings.HasPrefix(name, "test") {
				t.Errorf("%s has no row in the table of arrows: which packages may it import?", name)
				continue
			}
			for _, path := range p.Imports {
				imported, ours := strings.CutPrefix(path, module)
				switch {
				case !ours:
				case strings.HasPrefix(imported, "cmd/") || strings.HasPrefix(imported, "test"):
					t.Errorf("%s imports %s: nobody may", name, imported)
				case known && !slices.Contains(allowed, imported):
					t.Errorf("%s imports %s (tags %q): not an arrow of the design", name, imported, tags)
				}
				unused[name] = slices.DeleteFunc(unused[name], func(arrow string) bool { return arrow == imported })
			}
		}
	}
	for name, left := range unused {
		for _, imported := range left {
			t.Errorf("%s imports %s no more: take the arrow out", name, imported)
		}
	}
}

// The list of packages in docs/design.md is in the order of the arrows.
func TestArrowsPointDown(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(page), "\n## Packages\n")
	list, _, _ = strings.Cut(list, "\n## ")
	place := map[string]int{}
	for i, line := range strings.Split(list, "\n") {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| `"), "` |"); ok {
			place[name] = i
		}
	}
	if len(place) < 20 {
		t.Fatalf("%d packages in the list of docs/design.md", len(place))
	}
	for name, arrows := range arrows {
		for _, imported := range arrows {
			if from, to := place[name], place[imported]; from > 0 && to > 0 && from > to {
				t.Errorf("%s stands below %s, which it imports", name, imported)
			}
		}
	}
}

// A worker for production has no simulator and no embedded server in it.
func TestProductionHasNoSimulator(t *testing.T) {
	t.Parallel()
	foreign := []string{"github.com/nats-io/nats-server/v2/server", "github.com/alicebob/miniredis/v2", "testing"}
	for _, p := range packages(t, "production", "./cmd/worker") {
		for _, path := range p.Deps {
			name := strings.TrimPrefix(path, module)
			if slices.Contains(simulated, name) || slices.Contains(foreign, path) {
				t.Errorf("the production build of %s holds %s", p.ImportPath, path)
			}
		}
	}
	// Where the sandbox is part of the build, only the command line, the box and the judge of flow control reach it.
	for _, p := range packages(t, "", "./...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		if name == "cmd/worker" || name == "internal/devbox" || name == "bench/flow" || strings.HasPrefix(name, "test") {
			continue
		}
		for _, path := range p.Imports {
			if imported := strings.TrimPrefix(path, module); slices.Contains(simulated, imported) {
				t.Errorf("%s imports %s outside its tests", name, imported)
			}
		}
	}
}
