package failpoint_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"zoho-worker/internal/failpoint"
)

// Every point is on the path, once, and nothing is marked that is no point.
func TestPointsAreOnThePath(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("failpoint.go")
	if err != nil {
		t.Fatal(err)
	}
	var declared []string // by their Go names, in order
	for _, m := range regexp.MustCompile(`(?m)^\t(\w+)\s+Point = "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
		declared = append(declared, m[1])
		if !slices.Contains(failpoint.Points(), failpoint.Point(m[2])) {
			t.Errorf("Points leaves out %s", m[2])
		}
	}
	if len(declared) != len(failpoint.Points()) {
		t.Errorf("%d points are declared, Points has %d", len(declared), len(failpoint.Points()))
	}
	hits := map[string]int{}
	for _, dir := range []string{"../relay", "../consumer"} {
		files, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if f.IsDir() {
				continue
			}
			text, err := os.ReadFile(dir + "/" + f.Name())
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`failpoint\.Hit\(failpoint\.(\w+)\)`).FindAllStringSubmatch(string(text), -1) {
				hits[m[1]]++
			}
		}
	}
	for _, name := range declared {
		if hits[name] != 1 {
			t.Errorf("%s is marked %d times", name, hits[name])
		}
	}
}
