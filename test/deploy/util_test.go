package deploy

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"zoho-worker/internal/app"
)

// root is the top of the repository.
const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(root + "/" + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// documents are the YAML documents of a file.
func documents(t *testing.T, path string) [][]byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for _, d := range regexp.MustCompile(`(?m)^---\n`).Split(string(text), -1) {
		if len(bytes.TrimSpace(comment.ReplaceAll([]byte(d), nil))) > 0 {
			all = append(all, []byte(d))
		}
	}
	return all
}

var comment = regexp.MustCompile(`(?m)^\s*#.*$`)

var (
	version = regexp.MustCompile(`^[^:@]+(:\d+/[^:@]+)?:v?\d+\.\d+(\.\d+)?[0-9A-Za-z._-]*(@sha256:[0-9a-f]{64})?$`)
	// distroless has no version tags; the comment in the Dockerfile says what to do.
	unversioned = []string{"gcr.io/distroless/static-debian12:nonroot"}
)

// pinned says what is wrong with an image's name: it must say a version.
func pinned(image string) string {
	for _, u := range unversioned {
		if image == u {
			return ""
		}
	}
	if !version.MatchString(image) {
		return image + " has no version"
	}
	return ""
}

var secretForms = map[string]*regexp.Regexp{
	"a private key":             regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`),
	"an nkey's seed":            regexp.MustCompile(`\bS[UANCOX][A-Z2-7]{56}\b`),
	"a Zoho token":              regexp.MustCompile(`\b1000\.[0-9a-f]{32}\.[0-9a-f]{32}\b`),
	"32 random bytes in base64": regexp.MustCompile(`(^|[^A-Za-z0-9+/=])[A-Za-z0-9+/]{43}=`),
	"a password in a URL":       regexp.MustCompile(`[a-z]+://[^\s:/@"'$<]*:[^\s@/"'$<{]+@`),
	"a bcrypt hash":             regexp.MustCompile(`\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}`),
}

// secretLooking names what looks like a secret in a text.
func secretLooking(text string) []string {
	var faults []string
	for what, form := range secretForms {
		if found := form.FindString(text); found != "" && !strings.Contains(found, ":PASSWORD@") {
			faults = append(faults, "holds what looks like "+what)
		}
	}
	return faults
}

// workerVariables are the environment variables that `worker run` reads.
func workerVariables(t *testing.T) map[string]bool {
	t.Helper()
	config := app.Defaults()
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	config.BindWorker(flags)
	names := map[string]bool{}
	flags.VisitAll(func(f *pflag.Flag) {
		name := strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		names[name] = true
		if f.Value.Type() == "secret" {
			names[name+"_FILE"] = true
		}
	})
	return names
}
