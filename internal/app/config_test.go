package app

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
)

func load(t *testing.T, args []string, environment map[string]string) (Config, error) {
	t.Helper()
	c := Defaults()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	c.BindWorker(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	err := c.Load(flags, lookupIn(environment))
	return c, err
}

func lookupIn(environment map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) { value, ok := environment[name]; return value, ok }
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A flag beats the environment, that the file, that the default.
func TestConfigOrder(t *testing.T) {
	t.Parallel()
	path := write(t, "c.yaml", `# a comment
nats-url: nats://file:4222
http-addr: ":1"
max-in-flight: 7
call-timeout: 20s
reply-prefixes: [_INBOX., answers.]
redis-url: ""
`)
	c, err := load(t, []string{"--nats-url", "nats://flag:4222"}, map[string]string{
		"CONFIG": path, "NATS_URL": "nats://environment:4222", "HTTP_ADDR": ":2", "LOG_LEVEL": "",
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.NATSURL != "nats://flag:4222" || c.HTTPAddr != ":2" || c.MaxInFlight != 7 || c.CallTimeout != 20*time.Second ||
		!slices.Equal(c.ReplyPrefixes, []string{"_INBOX.", "answers."}) || !c.RedisURL.IsZero() || c.LogLevel != "info" {
		t.Fatalf("got %+v", c)
	}
	for name, want := range map[string]string{
		"nats-url": "flag", "http-addr": "HTTP_ADDR", "max-in-flight": path + ":4", "log-level": "default", "redis-url": path + ":7",
	} {
		if got := c.Origin(name); got != want {
			t.Errorf("%s is from %q, want %q", name, got, want)
		}
	}
	// A variable that is empty is one that isn't set, but for Redis, which can be done without.
	if c, err = load(t, nil, map[string]string{"REDIS_URL": "", "NATS_URL": ""}); err != nil || !c.RedisURL.IsZero() || c.NATSURL != Defaults().NATSURL {
		t.Errorf("Redis is %q, NATS %q, %v", c.RedisURL.Reveal(), c.NATSURL, err)
	}
}

// Everything that is wrong with a file is told at once, with its line.
func TestConfigFileFaults(t *testing.T) {
	t.Parallel()
	path := write(t, "c.yaml", `nats_url: nats://x:4222
max-in-flight: many
nats-creds: {a: b}

log-level:
retention: 1 day
speed: 9
http-addr: ":1"
http-addr: ":2"
reply-prefixes: [a, [b]]
encryption-keys-file: none-such
`)
	_, err := load(t, []string{"--config", path}, nil)
	if err == nil {
		t.Fatal("no fault found")
	}
	for _, want := range []string{
		":1: nats_url: no such setting; it is written nats-url", ":2: max-in-flight: must be an integer",
		":3: nats-creds: must be a plain value", ":5: log-level: has no value", ":6: retention: must be a duration",
		":7: speed: no such setting", ":9: http-addr: is set in line 8 already", ":10: reply-prefixes: must be a list of plain values",
		":11: encryption-keys-file: open ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not told in:\n%v", want, err)
		}
	}
	for _, text := range []string{"a: [", "- a\n- b", "a: 1\n---\nb: 2"} {
		if _, err := load(t, []string{"--config", write(t, "c.yaml", text)}, nil); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if _, err := load(t, []string{"--config", write(t, "c.yaml", "# nothing\n")}, nil); err != nil {
		t.Errorf("a file of comments: %v", err)
	}
}

// A number is what its digits say, from wherever it comes, and nothing else is one.
func TestNumbersAreDecimal(t *testing.T) {
	t.Parallel()
	for where, read := range map[string]func(value string) (Config, error){
		"flag": func(value string) (Config, error) {
			c := Defaults()
			flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
			c.BindWorker(flags)
			return c, flags.Parse([]string{"--max-in-flight", value})
		},
		"environment": func(value string) (Config, error) { return load(t, nil, map[string]string{"MAX_IN_FLIGHT": value}) },
		"file": func(value string) (Config, error) {
			return load(t, []string{"--config", write(t, "c.yaml", "max-in-flight: "+value+"\n")}, nil)
		},
	} {
		for _, value := range []string{"010", "10", "+10"} {
			if c, err := read(value); err != nil || c.MaxInFlight != 10 {
				t.Errorf("%s from the %s is %d, %v", value, where, c.MaxInFlight, err)
			}
		}
		for _, value := range []string{"0x10", "0b1", "1_000", "1e3", "10.0", "ten", "99999999999999999999"} {
			if c, err := read(value); err == nil || !strings.Contains(err.Error(), "max-in-flight") || !strings.Contains(err.Error(), "must be an integer") {
				t.Errorf("%s from the %s is %d, %v", value, where, c.MaxInFlight, err)
			}
		}
	}
}

// A file may hold what a client has no use for; it may not hold what nobody has.
func TestConfigFileOfClient(t *testing.T) {
	t.Parallel()
	c := Defaults()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	c.BindClient(flags)
	c.File = write(t, "c.yaml", "nats-url: nats://file:4222\nmax-in-flight: 7\n")
	if err := c.Load(flags, lookupIn(nil)); err != nil || c.NATSURL != "nats://file:4222" {
		t.Fatalf("%v, %s", err, c.NATSURL)
	}
}

// Nothing that prints a configuration shows a secret.
func TestConfigShowsNoSecret(t *testing.T) {
	t.Parallel()
	secretFile := write(t, "key", "k1:PLANTED-KEY\n")
	path := write(t, "c.yaml", "encryption-keys-file: "+secretFile+"\nzoho-client-secret: PLANTED-SECRET\n")
	c, err := load(t, []string{
		"--config", path, "--nats-url", "nats://u:PLANTED-NATS@a:1,tls://PLANTED-TOKEN@b:2,PLANTED@c:3",
		"--redis-url", "rediss://me:PLANTED-REDIS@r:6379/0?password=PLANTED-QUERY",
		"--webhook-url", "https://hooks.example.com/services/PLANTED-PATH?token=PLANTED",
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.EncryptionKeys.Reveal() != "k1:PLANTED-KEY" {
		t.Fatalf("key is %q", c.EncryptionKeys.Reveal())
	}
	for _, e := range c.Effective() {
		if strings.Contains(e.Value+e.Origin, "PLANTED") {
			t.Errorf("%s shows %q", e.Name, e.Value)
		}
		if e.Name == "redis-url" && e.Value != "rediss://me:xxxxx@r:6379/0?redacted" {
			t.Errorf("redis-url shows %q", e.Value)
		}
		if e.Name == "webhook-url" && e.Value != "https://hooks.example.com/redacted" {
			t.Errorf("webhook-url shows %q", e.Value)
		}
		if e.Name == "encryption-keys" && e.Value != "redacted" {
			t.Errorf("encryption-keys shows %q", e.Value)
		}
	}
	if err := c.Validate(); err == nil || strings.Contains(err.Error(), "PLANTED") {
		t.Errorf("Validate: %v", err)
	}
	_, err = load(t, []string{"--redis-url", "redis://:PLANTED@[broken"}, nil)
	if err != nil && strings.Contains(err.Error(), "PLANTED") {
		t.Error(err)
	}
}

// What SIGHUP does: the level follows the file, a flag stays, a fault changes nothing.
func TestReload(t *testing.T) {
	t.Parallel()
	valid := "zoho-client-id: a\nzoho-client-secret: b\nencryption-keys: \"k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n"
	path := write(t, "c.yaml", valid+"log-level: info\n")
	c, err := load(t, []string{"--config", path, "--max-in-flight", "9"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	level := new(slog.LevelVar)
	logger := LoggerAt(&out, level, "json")
	rewrite := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(valid+text), 0o600); err != nil {
			t.Fatal(err)
		}
		c = c.reloaded(level, logger)
	}
	rewrite("log-level: debug\nmax-in-flight: 10\ncall-timeout: 30s\n")
	if level.Level() != slog.LevelDebug || c.MaxInFlight != 9 {
		t.Fatalf("level %v, %d in flight", level.Level(), c.MaxInFlight)
	}
	if !strings.Contains(out.String(), `"settings":["call-timeout"]`) {
		t.Fatalf("log: %s", out.String())
	}
	rewrite("log-level: loud\nreplicas: two\n") // one that is wrong, and one that can't be read
	if said := out.String(); level.Level() != slog.LevelDebug || !strings.Contains(said, "has faults") || !strings.Contains(said, "log-level") || !strings.Contains(said, "replicas") {
		t.Fatalf("level %v, log: %s", level.Level(), said)
	}
	rewrite("log-level: warn\n")
	if level.Level() != slog.LevelWarn {
		t.Fatalf("level %v", level.Level())
	}
}

// The file is read again that was read first, whatever CONFIG names.
func TestReloadKeepsTheFile(t *testing.T) {
	t.Parallel()
	valid := "zoho-client-id: a\nzoho-client-secret: b\nencryption-keys: \"k1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"\n"
	path := write(t, "c.yaml", valid+"log-level: debug\n")
	for _, other := range []string{"", write(t, "other.yaml", valid+"log-level: error\n")} {
		environment := map[string]string{"CONFIG": other}
		c, err := load(t, []string{"--config", path}, environment)
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.Reload(lookupIn(environment))
		if err != nil || again.LogLevel != "debug" || again.File != path {
			t.Errorf("CONFIG=%s: %s of %s, %v", other, again.LogLevel, again.File, err)
		}
	}
}

// The documentation names every setting with its environment variable and default.
func TestConfigurationIsDocumented(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	// The file of its example, which people begin with, answers whom the defaults answer.
	_, example, _ := strings.Cut(string(data), "```yaml\n")
	example, _, _ = strings.Cut(example, "```")
	shown, _ := load(t, []string{"--config", write(t, "c.yaml", example)}, nil) // the files that it names are not here
	if shown.Replicas != 3 {
		t.Errorf("the example is not read: %s", example)
	}
	for _, prefix := range Defaults().ReplyPrefixes {
		if !slices.Contains(shown.ReplyPrefixes, prefix) {
			t.Errorf("the example's reply-prefixes leave out %s", prefix)
		}
	}
	c := Defaults()
	for _, s := range c.settings() {
		row := "| `" + s.Name + "` | `" + env(s.Name) + "`"
		if !strings.Contains(string(data), row) {
			t.Errorf("docs/configuration.md has no row %s", row)
		}
	}
}
