// Package test holds what the documentation says against the code.
package test

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"zoho-worker/internal/app"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/inspect"
	"zoho-worker/schemas"
)

const root = ".."

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// pages are the README and its like, and everything below docs.
func pages(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			rel, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, filepath.ToSlash(rel))
		}
	}
	if !slices.Contains(all, "README.md") || !slices.Contains(all, "docs/envelope.md") {
		t.Fatalf("pages are %v", all)
	}
	return all
}

// section is what stands below a heading, to the next one of any level.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, rest, ok := strings.Cut("\n"+page, "\n"+heading+"\n")
	if !ok {
		t.Fatalf("there is no heading %q", heading)
	}
	text, _, _ := strings.Cut(rest, "\n#")
	return text
}

var firstCell = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|")

// names are the first cells of a section's table.
func names(text string) []string {
	var found []string
	for _, m := range firstCell.FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

// ordered are the keys of a JSON object in the document's order.
func ordered(t *testing.T, data json.RawMessage) []string {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(data)))
	if _, err := d.Token(); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for d.More() {
		key, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key.(string))
	}
	return keys
}

// The reference names the fields and codes that the schemas and the code name,
// in their order.
func TestEnvelopeReference(t *testing.T) {
	t.Parallel()
	type schema struct {
		Properties json.RawMessage
		Required   []string
	}
	var request, response schema
	if err := errors.Join(json.Unmarshal(schemas.Request, &request), json.Unmarshal(schemas.Response, &response)); err != nil {
		t.Fatal(err)
	}
	var inResponse struct {
		Error struct {
			Properties struct {
				Code struct{ Enum []string }
			}
		}
	}
	if err := json.Unmarshal(response.Properties, &inResponse); err != nil {
		t.Fatal(err)
	}
	var codes []string
	for _, code := range envelope.Codes() {
		codes = append(codes, string(code))
	}
	page := read(t, "docs/envelope.md")
	fields := section(t, page, "## Request fields")
	for _, c := range []struct {
		what      string
		got, want []string
	}{
		{"request fields", names(fields), ordered(t, request.Properties)},
		{"response fields", names(section(t, page, "## Response fields")), ordered(t, response.Properties)},
		{"error fields", names(section(t, page, "### error")), []string{"code", "message"}},
		{"codes", names(section(t, page, "## Error codes")), codes},
		{"codes of the schema", inResponse.Error.Properties.Code.Enum, codes},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s are %v, want %v", c.what, c.got, c.want)
		}
	}
	for line := range strings.Lines(fields) {
		if m := firstCell.FindStringSubmatch(line); m != nil && strings.Contains(line, "| required;") != slices.Contains(request.Required, m[1]) {
			t.Errorf("field %s: the page and the schema differ on whether it is required", m[1])
		}
	}
}

var fenced = regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$")

// Every request and response that the reference shows is a valid one.
func TestEnvelopeExamples(t *testing.T) {
	t.Parallel()
	decoder := envelope.Decoder{ReplyPrefixes: []string{"_INBOX."}}
	received := time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)
	requests, responses := 0, 0
	for _, m := range fenced.FindAllStringSubmatch(read(t, "docs/envelope.md"), -1) {
		switch {
		case m[1] != "json":
		case strings.Contains(m[2], `"method"`):
			requests++
			if _, err := decoder.Decode([]byte(m[2]), received); err != nil {
				t.Errorf("request %s: %v", m[2], err)
			}
		case strings.Contains(m[2], `"attempts"`):
			responses++
			if _, err := envelope.DecodeResponse([]byte(m[2])); err != nil {
				t.Errorf("response %s: %v", m[2], err)
			}
		case !json.Valid([]byte(m[2])):
			t.Errorf("not JSON: %s", m[2])
		}
	}
	if requests < 2 || responses < 2 {
		t.Errorf("found %d requests and %d responses", requests, responses)
	}
}

// The refusals that the reference quotes are what the decoder says.
func TestRefusalsAreQuotedTruly(t *testing.T) {
	t.Parallel()
	fields := map[string]string{"id": `"x"`, "method": `"GET"`, "url": `"/v8/Leads"`}
	row := regexp.MustCompile("(?m)^\\| `(\"([A-Za-z_]+)\": .*)` \\| `(.*)` \\|$")
	rows := row.FindAllStringSubmatch(section(t, read(t, "docs/envelope.md"), "## Request fields"), -1)
	for _, m := range rows {
		document := "{" + m[1]
		for field, value := range fields {
			if field != m[2] {
				document += `,"` + field + `":` + value
			}
		}
		_, err := new(envelope.Decoder).Decode([]byte(document+"}"), time.Now())
		var refused *envelope.Error
		if !errors.As(err, &refused) || refused.Message != m[3] {
			t.Errorf("%s: got %v, want %s", m[1], err, m[3])
		}
	}
	if len(rows) < 5 {
		t.Errorf("found %d rows", len(rows))
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// anchors are the names by which a page's headings can be linked to.
func anchors(page string) []string {
	var found []string
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(page, ""), -1) {
		found = append(found, strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-"))
	}
	return found
}

// Every relative link leads to a file that is there, and to a heading it has.
func TestLinks(t *testing.T) {
	t.Parallel()
	for _, page := range pages(t) {
		text := fenced.ReplaceAllString(read(t, page), "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			to := page
			if target != "" {
				to = filepath.ToSlash(filepath.Join(filepath.Dir(page), target))
			}
			if _, err := os.Stat(filepath.Join(root, to)); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, to)), anchor) {
				t.Errorf("%s: %s leads to no heading of %s", page, m[1], to)
			}
		}
	}
}

// A comment that refers to a page's section refers to one that it has.
func TestSectionsInComments(t *testing.T) {
	t.Parallel()
	reference := regexp.MustCompile(`(docs/[a-z-]+\.md), "([^"\n]+)"`)
	found := 0
	for _, place := range []string{"cmd", "internal", "deploy", "test", "docker-compose.yml", "Dockerfile", "Makefile"} {
		if err := filepath.WalkDir(filepath.Join(root, place), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Base(path) == "docs_test.go" {
				return err
			}
			data, err := os.ReadFile(path)
			for _, m := range reference.FindAllStringSubmatch(string(data), -1) {
				found++
				if !regexp.MustCompile(`(?m)^#+ ` + regexp.QuoteMeta(m[2]) + `$`).MatchString(read(t, m[1])) {
					t.Errorf("%s: %s has no section %q", path, m[1], m[2])
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("found no reference")
	}
}

// Every setting of a worker is documented, under its flag's name and its variable's.
func TestSettingsAreDocumented(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/configuration.md")
	config := app.Defaults()
	flags := pflag.NewFlagSet("worker", pflag.ContinueOnError)
	config.BindWorker(flags)
	flags.VisitAll(func(f *pflag.Flag) {
		variable := strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if !strings.Contains(page, "`"+f.Name+"`") && !strings.Contains(page, "--"+f.Name) || !strings.Contains(page, variable) {
			t.Errorf("--%s (%s) is not in docs/configuration.md", f.Name, variable)
		}
	})
}

// Comments refer to docs/zoho-facts.md by section: every one of them is there.
func TestZohoFactsSections(t *testing.T) {
	t.Parallel()
	var sections []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (\d+(?:\.\d+)?) `).FindAllStringSubmatch(read(t, "docs/zoho-facts.md"), -1) {
		sections = append(sections, m[1])
	}
	reference := regexp.MustCompile(`zoho-facts (\d+(?:\.\d+)?)`)
	found := 0
	for _, dir := range []string{"cmd", "internal", "test"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range reference.FindAllStringSubmatch(string(data), -1) {
				found++
				if !slices.Contains(sections, m[1]) {
					t.Errorf("%s: zoho-facts has no section %s", path, m[1])
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found < 10 {
		t.Errorf("found %d references", found)
	}
}

// The README's Go code is the one that the example compiles and runs.
func TestReadmeSnippet(t *testing.T) {
	t.Parallel()
	source := read(t, "test/example_test.go")
	found := 0
	for _, m := range fenced.FindAllStringSubmatch(read(t, "README.md"), -1) {
		if m[1] != "go" {
			continue
		}
		if found++; !strings.Contains(source, strings.TrimSpace(m[2])) {
			t.Errorf("not in test/example_test.go:\n%s", m[2])
		}
	}
	if found == 0 {
		t.Error("the README has no Go code")
	}
}

// Each state that worker why tells of has its row.
func TestStatesAreDocumented(t *testing.T) {
	t.Parallel()
	text := section(t, read(t, "docs/troubleshooting.md"), "### What a request waits for")
	for _, state := range inspect.States() {
		if !strings.Contains(text, "| `"+string(state)+"` |") {
			t.Errorf("docs/troubleshooting.md has no row for %s", state)
		}
	}
	if rows := strings.Count(text, "\n| `"); rows != len(inspect.States()) {
		t.Errorf("%d rows, %d states", rows, len(inspect.States()))
	}
}

// The reader's guide to package consumer names each of its files, and each of its
// functions that is there; so does the path of a request.
func TestReadersGuide(t *testing.T) {
	t.Parallel()
	page := read(t, "docs/design.md")
	guide := section(t, page, "### Reading internal/consumer")
	declared := map[string]bool{} // functions, with their receivers' types or else their packages', in lower case
	for _, dir := range []string{"consumer", "relay", "envelope"} {
		files, err := filepath.Glob(filepath.Join(root, "internal", dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%d files of %s: %v", len(files), dir, err)
		}
		for _, file := range files {
			name := filepath.Base(file)
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			if dir == "consumer" && !strings.Contains(guide, "`"+name+"`") {
				t.Errorf("the guide leaves out %s", name)
			}
			for _, m := range function.FindAllStringSubmatch(read(t, filepath.Join("internal", dir, name)), -1) {
				declared[strings.ToLower(m[1]+"."+m[2])], declared[dir+"."+strings.ToLower(m[2])] = true, true
			}
		}
	}
	for _, m := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(guide, -1) {
		if name := m[1]; !slices.Contains([]string{"gate", "hand", "directory", "expiry"}, name) && !declared["consumer."+strings.ToLower(name)] {
			t.Errorf("package consumer has no function %s", name)
		}
	}
	steps := 0
	for _, m := range regexp.MustCompile(`(?m)^(\w+\.\w+)  `).FindAllStringSubmatch(section(t, page, "## The path of a request"), -1) {
		if steps++; !declared[strings.ToLower(m[1])] {
			t.Errorf("the path of a request has no %s", m[1])
		}
	}
	if steps < 5 {
		t.Errorf("the path of a request has %d steps", steps)
	}
}

// function is a declaration: the receiver's type, and the name.
var function = regexp.MustCompile(`(?m)^func (?:\(\w* ?\*?(\w+)\) )?(\w+)[(\[]`)

var warning = regexp.MustCompile(`[lL]ogger\.(?:Warn|Error)\(\s*"([^"]+)"`)

// Whoever reads a warning finds in docs/troubleshooting.md what to do, and nothing there
// is of a line that no worker writes.
func TestEveryWarningIsExplained(t *testing.T) {
	t.Parallel()
	lines := map[string]bool{
		"NATS is not there yet": true, "JetStream is not there yet": true, // app.await makes these
		"http: panic serving": true,                                                                       // net/http makes it
		"request settled":     true, "token is not refreshed": true, "lane not served for a moment": true, // their levels depend
	}
	for _, dir := range []string{"internal", "cmd"} {
		if err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source, err := os.ReadFile(path)
			for _, m := range warning.FindAllStringSubmatch(string(source), -1) {
				lines[m[1]] = true
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	page := read(t, "docs/troubleshooting.md")
	table := section(t, page, "## Warnings and errors in the log")
	explained := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?) \\|").FindAllStringSubmatch(table, -1) {
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			explained[m[1]] = true
		}
	}
	for line := range lines {
		found := strings.Contains(page, "`"+line+"`")
		for beginning := range explained {
			found = found || strings.HasPrefix(line, beginning)
		}
		if !found {
			t.Errorf("docs/troubleshooting.md doesn't say what to do about the line %q", line)
		}
	}
	for beginning := range explained {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(lines)), func(line string) bool { return strings.HasPrefix(line, beginning) }) {
			t.Errorf("docs/troubleshooting.md explains %q, which no worker writes", beginning)
		}
	}
}
