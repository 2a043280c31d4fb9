package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"zoho-worker/internal/app"
)

// every visits a command and all below it.
func every(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, sub := range c.Commands() {
		every(sub, visit)
	}
}

// Help has each command and each flag once, in lines that fit.
func TestHelp(t *testing.T) {
	t.Parallel()
	const width = 100
	every(root(), func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		text := usageText(c, width)
		_, flagLines, _ := strings.Cut(text, "\nFlags:\n")
		for line := range strings.Lines(flagLines) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > width {
				t.Errorf("%s: %d wide: %s", c.CommandPath(), n, line)
			}
		}
		once := func(what, name string) {
			if n := strings.Count(text, name); n != 1 {
				t.Errorf("%s: %s %s %d times:\n%s", c.CommandPath(), what, name, n, text)
			}
		}
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				once("command", "\n  "+sub.Name()+" ")
			}
		}
		flags := func(f *pflag.Flag) {
			if !f.Hidden && (kindOf(f) == "" || !parent(c)) {
				once("flag", "--"+f.Name+map[bool]string{true: "  ", false: " " + strings.TrimSuffix(typeOf(f), "Array") + "  "}[f.Value.Type() == "bool"])
			}
		}
		c.LocalFlags().VisitAll(flags)
		c.InheritedFlags().VisitAll(flags)
	})
}

func typeOf(f *pflag.Flag) string {
	name, _ := pflag.UnquoteUsage(f)
	return name
}

// Settings stand with their like, and apart from what a command takes itself.
func TestHelpOfSettings(t *testing.T) {
	t.Parallel()
	text := usageText(find(t, "run"), 0)
	at := 0
	for _, want := range []string{
		"\nFlags:\n", "\nNATS:\n", "      --ack-wait duration ", "      --nats-url string ", "\nRedis:\n", "      --redis-url secret ",
		"\nZoho:\n", "      --zoho-client-id string ", "\nConsole and events:\n", "      --oidc-issuer string ", "\nGeneral:\n", "      --encryption-keys secret ",
	} {
		i := strings.Index(text[at:], want)
		if i < 0 {
			t.Fatalf("%q is not where it should be:\n%s", want, text)
		}
		at += i
	}
	if !strings.Contains(text, " [$HTTP_ADDR] (default :8080)") {
		t.Errorf("no default:\n%s", text)
	}
	// Who asks which commands there are is shown these alone.
	if text := usageText(find(t, "connections"), 0); strings.Contains(text, "--nats-url") || !strings.Contains(text, "reauthorize") {
		t.Errorf("the commands stand among settings:\n%s", text)
	}
}

func find(t *testing.T, path ...string) *cobra.Command {
	t.Helper()
	c, _, err := root().Find(path)
	if err != nil {
		t.Fatal(err)
	}
	c.InitDefaultHelpFlag()
	return c
}

// What is wrong with the words of a command line says what would be right, or where
// that is told.
func TestWrongWords(t *testing.T) {
	t.Parallel()
	for line, want := range map[string][]string{
		"call demo GET /v8/Leads --nats-ulr x":  {"unknown flag: --nats-ulr: did you mean --nats-url?", "worker call --help lists its flags"},
		"call demo GET /v8/Leads --retry":       {"did you mean --retry-failed-records?"},
		"run --max-in-flight ten":               {`invalid argument "ten" for "--max-in-flight"`, "worker run --help lists its flags"},
		"dead list -x":                          {"unknown shorthand flag: 'x'", "worker dead list --help lists its flags"},
		"nope":                                  {`unknown command "nope" for "worker"`, "worker --help lists the commands"},
		"nope --with --flags":                   {`unknown command "nope" for "worker"`},
		"dead nope":                             {"worker dead --help lists the commands"},
		"call demo GET":                         {"usage: worker call CONNECTION METHOD URL", "worker call --help says more"},
		"dead list --code nope":                 {"it is one of", "outcome_unknown"},
		"call demo POST /v8/Leads --body @none": {"--body: open none: "},
		"connections add acme --code @none --encryption-keys x": {"--encryption-keys (ENCRYPTION_KEYS)"},
	} {
		cmd := root()
		cmd.SetOut(io.Discard)
		cmd.SetArgs(strings.Fields(line))
		err := hinted(cmd.ExecuteContext(t.Context()))
		for _, want := range want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", line, err, want)
			}
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for _, arg := range []string{"version", "--version", "-v"} {
		var out bytes.Buffer
		cmd := root()
		cmd.SetOut(&out)
		cmd.SetArgs([]string{arg})
		if err := cmd.ExecuteContext(t.Context()); err != nil || out.String() != "zoho-worker "+app.Version+"\n" {
			t.Errorf("%s: %v, %q", arg, err, out.String())
		}
	}
}

// A slip in JSON is told before Zoho has a text to complain of.
func TestAlmostJSON(t *testing.T) {
	t.Parallel()
	for body, slip := range map[string]bool{
		`{"data":[}`: true, `[1,`: true, `{"a":1}}`: true, `{"a":1}`: false, "a,b\n1,2\n": false, "": false,
	} {
		request, err := callFlags{body: body}.request("POST", "/v8/Leads", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := almostJSON(request.Body); (err != nil) != slip {
			t.Errorf("%s: %v", body, err)
		}
	}
}
