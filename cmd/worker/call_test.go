//go:build !production

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"zoho-worker/internal/app"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
	"zoho-worker/schemas"
)

// serve starts a worker and the connection demo; the test ends them.
func (s *shell) serve() {
	s.t.Helper()
	config := app.Defaults()
	config.NATSURL, config.RedisURL, config.EncryptionKeys = s.box.NATSURL, secret.New(s.box.RedisURL), secret.New(s.keys)
	config.ZohoClientID, config.ZohoClientSecret = "1000.X", secret.New("client-secret")
	config.ZohoAccountsURL, config.ZohoAPIURL, config.HTTPAddr = s.box.ZohoURL, s.box.ZohoURL, "127.0.0.1:0"
	worker, err := app.Start(s.t.Context(), config, app.Logger(io.Discard, "error", "json"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { worker.Stop(context.Background()) })
	if err := demoConnection(s.t.Context(), worker.Connections, s.box); err != nil {
		s.t.Fatal(err)
	}
}

// command runs a command against the box, and returns what it says.
func (s *shell) command(args ...string) (out, errs string, err error) {
	var stdout, stderr output
	cmd := root()
	cmd.SetOut(&stdout)
	cmd.SetErr(&stderr)
	cmd.SetArgs(append(args, "--nats-url", s.box.NATSURL))
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	err = cmd.ExecuteContext(ctx)
	return stdout.String(), stderr.String(), err
}

// What a command doesn't take is refused, and says what it takes; a command that is
// there for its sub-commands shows them.
func TestWhatCommandsRefuse(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"queues pasue demo 5m":                 "unknown command \"pasue\" for \"worker queues\"\n\nDid you mean this?\n\tpause\n",
		"dead nope":                            `unknown command "nope" for "worker dead"`,
		"connections lst":                      "Did you mean this?\n\tlist",
		"config prnit":                         "Did you mean this?\n\tprint",
		"stat":                                 "Did you mean this?\n\tstatus",
		"simulator conect demo":                `unknown command "conect" for "worker simulator"`,
		"why acme":                             "usage: worker why CONNECTION ID",
		"call acme GET":                        "usage: worker call CONNECTION METHOD URL",
		"queues pause acme":                    "usage: worker queues pause CONNECTION DURATION",
		"connections add":                      "usage: worker connections add NAME",
		"connections limit a 1 2":              "usage: worker connections limit NAME [CALLS]",
		"dead show":                            "usage: worker dead show NUMBER",
		"connections add a --environment prod": `--environment "prod": Zoho's environments are production, sandbox, developer`,
		"connections add a --refresh-token=":   `--refresh-token" flag: it is empty`,
		"connections reauthorize a --code=":    `--code" flag: it is empty`,
		"run --log-level top --config none.yaml --max-in-flight 0": "the configuration has faults:\n" +
			"--config (CONFIG): open none.yaml: no such file or directory\n--max-in-flight (MAX_IN_FLIGHT): must be at least 1\n--log-level (LOG_LEVEL)",
		"call a GET /v8/Leads --log-level top":                                                  "--log-level (LOG_LEVEL): must be debug, info, warn or error",
		"connections list --encryption-keys " + secret.Generate().Reveal() + " --log-level top": "--log-level (LOG_LEVEL): must be debug",
		"dev --log-level top":      "--log-level: must be debug, info, warn or error",
		"dev --data-dir /dev/null": "--data-dir /dev/null: mkdir /dev/null: not a directory: choose a directory that can be written",
		"dev --data-dir " + damaged(t) + " --nats-addr 127.0.0.1:0 --zoho-addr 127.0.0.1:0": "encryption-keys is damaged: ",
	} {
		cmd := root()
		cmd.SetOut(io.Discard)
		cmd.SetArgs(strings.Fields(line))
		if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
	for _, parent := range []string{"dead", "connections", "queues", "config"} {
		var out output
		cmd := root()
		cmd.SetOut(&out)
		cmd.SetArgs([]string{parent})
		if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), "\nCommands:\n") {
			t.Errorf("%s: %v, %s", parent, err, out.String())
		}
	}
}

// damaged is a data directory of `worker dev` whose keys can't be read.
func damaged(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "encryption-keys"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Interrupted while it starts, worker dev just ends.
func TestDevInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out output
	cmd := root()
	cmd.SetOut(&out)
	cmd.SetArgs(strings.Fields("dev --nats-addr 127.0.0.1:0 --zoho-addr 127.0.0.1:0 --http-addr 127.0.0.1:0"))
	if err := cmd.ExecuteContext(ctx); err != nil || !strings.Contains(out.String(), "stopping") {
		t.Errorf("%v, %s", err, out.String())
	}
}

// What worker dev says to try next works, with no other program.
func TestDevSaysWhatWorks(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var out output
	cmd := root()
	cmd.SetOut(&out)
	cmd.SetArgs(strings.Fields("dev --nats-addr 127.0.0.1:0 --zoho-addr 127.0.0.1:0 --http-addr 127.0.0.1:0"))
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	for !strings.Contains(out.String(), "Ctrl-C stops everything") {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("it has ended: %s", out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
	lines := regexp.MustCompile(`(?m)^  NATS_URL=(\S+) go run ./cmd/worker (why|status)(.*)$`).FindAllStringSubmatch(out.String(), -1)
	if len(lines) != 2 {
		t.Fatalf("%d lines: %s", len(lines), out.String())
	}
	for _, line := range lines {
		var said output
		cmd := root()
		cmd.SetOut(&said)
		cmd.SetArgs(append([]string{line[2], "--nats-url", line[1]}, strings.Fields(line[3])...))
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Errorf("%s: %v, %s", line[0], err, said.String())
		}
	}
}

// It leaves nothing behind when its terminal is closed.
func TestDevCleansUp(t *testing.T) {
	if os.Getenv("ZOHO_TEST_DEV") != "" {
		// A parent that nohup started ignores it, and so would its child.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		cmd := root()
		cmd.SetOut(os.Stdout)
		cmd.SetArgs(strings.Fields("dev --nats-addr 127.0.0.1:0 --zoho-addr 127.0.0.1:0 --http-addr 127.0.0.1:0"))
		if err := cmd.ExecuteContext(t.Context()); err != nil {
			t.Error(err)
		}
		return
	}
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestDevCleansUp$")
	child.Env = append(os.Environ(), "ZOHO_TEST_DEV=1", "TMPDIR="+dir)
	said, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(said)
	if _, err := lines.ReadString('\n'); err != nil { // it comes when all is up
		t.Error(err)
	}
	if kept, err := os.ReadDir(dir); err != nil || len(kept) == 0 {
		t.Errorf("it keeps nothing in %s: %v", dir, err)
	}
	if err := child.Process.Signal(syscall.SIGHUP); err != nil {
		t.Error(err)
	}
	_, _ = io.Copy(io.Discard, lines)
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v: %v", left, err)
	}
}

// A data directory is used again: the connection of before gets a grant of this run's simulator.
func TestDevAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for run := range 2 {
		var out output
		cmd := root()
		cmd.SetOut(&out)
		cmd.SetArgs(strings.Fields("dev --once --nats-addr 127.0.0.1:0 --zoho-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 --data-dir " + dir))
		if err := cmd.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), "  201  (1 attempt") {
			t.Errorf("run %d: %v, %s", run, err, out.String())
		}
	}
}

// What a request waits for, for scripts: 2 where nobody knows it, whatever is wrong.
func TestWhyOfStrangers(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.serve()
	for line, want := range map[string]string{
		"why Demo job-1": "can't be the name of a connection",
		"why nope job-1": "there is no connection nope; there is neither a request job-1",
		"why demo job-1": "there is neither a request job-1",
	} {
		out, _, err := s.command(strings.Fields(line)...)
		if exit, ok := errors.AsType[exitError](err); !ok || exit.status != 2 || !strings.Contains(out, want) {
			t.Errorf("%s: %v, %s", line, err, out)
		}
	}
}

// The list of settings is printed whatever can't be read, and the faults after it.
func TestConfigPrintOfWhatCantBeRead(t *testing.T) {
	t.Parallel()
	var out, errs output
	cmd := root()
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs([]string{"config", "print", "--config", filepath.Join(t.TempDir(), "none.yaml"), "--log-level", "warn"})
	err := cmd.ExecuteContext(t.Context())
	if exit, ok := errors.AsType[exitError](err); !ok || exit.status != 1 {
		t.Errorf("%v", err)
	}
	contains(t, out.String(), "log-level", "warn", "can't be read")
	contains(t, errs.String(), "--config (CONFIG): open ")
	if strings.Contains(errs.String(), "missing") {
		t.Errorf("told twice: %s", errs.String())
	}
}

// saysOf is what each field of a request is given by on the command line.
var saysOf = map[string][]string{
	"id": {"id"}, "method": nil, "url": nil, "query": {"query"}, "headers": {"header"},
	"body": {"body"}, "body_text": {"body"}, "body_base64": {"body"}, "body_object": {"body-object"},
	"reply_to": nil, "deadline": {"deadline"}, "unique_field": {"unique-field"}, "order_key": {"order-key"},
	"probe":                {"probe-field", "probe-coql", "probe-url", "probe-header"},
	"retry_failed_records": {"retry-failed-records"},
}

// What an envelope can say, the command can: a new field needs a flag.
func TestCallSaysEveryField(t *testing.T) {
	t.Parallel()
	var schema struct{ Properties map[string]json.RawMessage }
	if err := json.Unmarshal(schemas.Request, &schema); err != nil {
		t.Fatal(err)
	}
	flags := callCommand().Flags()
	for field := range schema.Properties {
		given, known := saysOf[field]
		if !known {
			t.Errorf("nothing says how the field %s is given", field)
		}
		for _, name := range given {
			if flags.Lookup(name) == nil {
				t.Errorf("%s: there is no flag --%s", field, name)
			}
		}
	}
	if len(schema.Properties) != len(saysOf) {
		t.Errorf("the schema has %d fields, the command %d", len(schema.Properties), len(saysOf))
	}
}

// The flags are the envelope that they say, and a mistake is told before anything
// is published.
func TestCallFlags(t *testing.T) {
	t.Parallel()
	const one = `{"data":[{"Last_Name":"Byron","Ref":"a-1"}]}`
	text := filepath.Join(t.TempDir(), "leads.csv")
	if err := os.WriteFile(text, []byte("Last_Name\nBoyle\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		flags callFlags
		want  func(r *envelope.Request) any
		is    any
	}{
		"probe-field": {callFlags{body: one, probeField: "Ref"}, func(r *envelope.Request) any { return r.Probe.Field }, "Ref"},
		"probe-coql":  {callFlags{body: one, probeCOQL: "Ref = 'a-1'"}, func(r *envelope.Request) any { return r.Probe.COQL }, "Ref = 'a-1'"},
		"probe-url": {
			callFlags{body: one, probeURL: "/v8/Leads/a-1?fields=Ref", probeHeader: []string{"X-EXTERNAL: Leads.Ref"}},
			func(r *envelope.Request) any { return fmt.Sprint(r.Probe.Path, r.Probe.RawQuery, r.Probe.Headers) },
			"/crm/v8/Leads/a-1fields=Ref[{X-EXTERNAL Leads.Ref}]",
		},
		"unique-field": {callFlags{id: "a-1", body: one, uniqueField: "Ref"}, func(r *envelope.Request) any { return r.UniqueField }, "Ref"},
		"retry":        {callFlags{body: one, retryFailedRecords: true}, func(r *envelope.Request) any { return r.RetryFailedRecords }, true},
		"order-key":    {callFlags{body: one, orderKey: "a:1"}, func(r *envelope.Request) any { return r.OrderKey }, "a:1"},
		"body-object":  {callFlags{bodyObject: "big"}, func(r *envelope.Request) any { return r.Body }, envelope.Body{Kind: envelope.ObjectBody, Data: []byte("big")}},
		"text":         {callFlags{body: "@" + text}, func(r *envelope.Request) any { return r.Body }, envelope.Body{Kind: envelope.TextBody, Data: []byte("Last_Name\nBoyle\n")}},
		"bytes":        {callFlags{body: "\xff\x00"}, func(r *envelope.Request) any { return r.Body }, envelope.Body{Kind: envelope.BytesBody, Data: []byte{0xff, 0}}},
		"query":        {callFlags{query: []string{"a=1", "a=2", "b=3"}}, func(r *envelope.Request) any { return r.RawQuery }, "a=1&a=2&b=3"},
		"header":       {callFlags{header: []string{"X-EXTERNAL: Leads.Ref"}}, func(r *envelope.Request) any { return r.Headers }, []envelope.Header{{Name: "X-EXTERNAL", Value: "Leads.Ref"}}},
	} {
		request, err := row.flags.request("post", "/v8/Leads", nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		// What is published says the same.
		again, err := (&envelope.Decoder{}).Decode(request.AppendJSON(nil), time.Now())
		if err != nil || again.Digest() != request.Digest() || again.OrderKey != request.OrderKey {
			t.Errorf("%s: published as %s: %v", name, request.AppendJSON(nil), err)
		}
		if got := row.want(request); !reflect.DeepEqual(got, row.is) {
			t.Errorf("%s: %v, want %v", name, got, row.is)
		}
	}
	for says, flags := range map[string]callFlags{
		"write it as name:value":              {body: one, probeURL: "/v8/Leads/a-1", probeHeader: []string{"X-EXTERNAL"}},
		"write it as name=value":              {query: []string{"a"}},
		"probe.field: must be the API name":   {body: one, probeField: "no name"},
		"order_key: must be":                  {orderKey: "two words"},
		"retry_failed_records: must be given": {retryFailedRecords: true},
		"a duration like 30s, or a time like": {deadline: "soon"},
	} {
		if _, err := flags.request("POST", "/v8/Leads", nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", flags, err, says)
		}
	}
	s := newShell(t)
	for _, args := range [][]string{{"--probe-field", "Ref", "--unique-field", "Ref"}, {"--probe-field", "Ref", "--probe-coql", "a = 1"}, {"--body", "{}", "--body-object", "big"}} {
		if _, _, err := s.command(append([]string{"call", "demo", "POST", "/v8/Leads"}, args...)...); err == nil || !strings.Contains(err.Error(), "none of the others can be") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// Zoho sees what the flags ask for: an insert whose answer is lost is looked up,
// records that failed for a passing reason are sent again, an object is the body.
func TestCall(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.serve()
	post := zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"}
	insert := func(name string, flags ...string) (out, errs string, err error) {
		return s.command(append([]string{
			"call", "demo", "POST", "/v8/Leads", "--body", `{"data":[{"Last_Name":"` + name + `","External_Ref":"` + name + `"}]}`,
		}, flags...)...)
	}
	there := func(name string) (n int) {
		for _, record := range s.box.Zoho.Records(devbox.OrgID, "Leads") {
			if record["Last_Name"] == name {
				n++
			}
		}
		return n
	}
	for name, flags := range map[string][]string{
		"byfield": {"--probe-field", "External_Ref"},
		"bycoql":  {"--probe-coql", "External_Ref = 'bycoql'"},
		"byurl":   {"--probe-url", "/v8/Leads/byurl?fields=External_Ref", "--probe-header", "X-EXTERNAL: Leads.External_Ref"},
	} {
		s.box.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("POST", "/crm/v8/Leads"))
		_, errs, err := insert(name, flags...)
		if err != nil || !strings.Contains(errs, "outcome confirmed") || there(name) != 1 {
			t.Errorf("%s: %v, there %d times: %s", name, err, there(name), errs)
		}
	}
	s.box.Zoho.SetUnique(devbox.OrgID, "Leads", "External_Ref")
	s.box.Zoho.Inject(zohotest.CutApplied(zohotest.Reset).On("POST", "/crm/v8/Leads"))
	if _, errs, err := insert("unique", "--id", "unique", "--unique-field", "External_Ref"); err != nil || !strings.Contains(errs, "outcome confirmed") || there("unique") != 1 {
		t.Errorf("unique: %v, there %d times: %s", err, there("unique"), errs)
	}
	before := s.box.Zoho.Count(post)
	s.box.Zoho.Inject(zohotest.RefuseRecords(func(map[string]any) string { return "RECORD_LOCKED" }).On("POST", "/crm/v8/Leads"))
	out, errs, err := insert("again", "--retry-failed-records")
	if err != nil || !strings.Contains(errs, "2 attempts") || !strings.Contains(out, "SUCCESS") || s.box.Zoho.Count(post)-before != 2 {
		t.Errorf("again: %v, sent %d times: %s%s", err, s.box.Zoho.Count(post)-before, out, errs)
	}
	_, js := s.jetstream()
	store, err := js.ObjectStore(t.Context(), consumer.BodyBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.PutString(t.Context(), "demo/big", `{"data":[{"Last_Name":"object"}]}`); err != nil {
		t.Fatal(err)
	}
	if _, errs, err := s.command("call", "demo", "POST", "/v8/Leads", "--body-object", "demo/big", "-H", "Content-Type: application/json"); err != nil || there("object") != 1 {
		t.Errorf("object: %v, there %d times: %s", err, there("object"), errs)
	}
	// Zoho's own refusal is told by the exit status, and an error of the worker's.
	var exit exitError
	if _, errs, err := insert("unique"); !errors.As(err, &exit) || exit.status != 1 || !strings.Contains(errs, "400") {
		t.Errorf("refused: %v, %s", err, errs)
	}
	if _, errs, err := insert("late", "--deadline", "2026-01-01T00:00:00Z"); !errors.As(err, &exit) || exit.status != 2 || !strings.Contains(errs, "deadline_exceeded") {
		t.Errorf("too late: %v, %s", err, errs)
	}
	// Again, at once, with the same id: the same answer to the same insert, none of its to
	// another, and to a read a fresh one.
	for range 2 {
		if out, errs, err := insert("twice", "--id", "twice"); err != nil || !strings.Contains(out, "SUCCESS") || there("twice") != 1 {
			t.Errorf("twice: %v, there %d times: %s%s", err, there("twice"), out, errs)
		}
		if out, errs, err := s.command("call", "demo", "GET", "/v8/Leads?fields=Last_Name", "--id", "read"); err != nil || !strings.Contains(out, "Last_Name") {
			t.Errorf("a read: %v: %s%s", err, out, errs)
		}
	}
	if _, errs, err := insert("other", "--id", "twice"); !errors.As(err, &exit) || exit.status != 2 || !strings.Contains(errs, "id_conflict") || there("other") != 0 {
		t.Errorf("another insert of that id: %v, there %d times: %s", err, there("other"), errs)
	}
}

// Nobody waits for an answer that can't come any more: of a request that is gone, or one
// that no worker may answer where its id has another's answer.
func TestCallOfWhatIsGone(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.serve()
	insert := []string{"call", "demo", "POST", "/v8/Leads", "--id", "once", "--nats-inbox-prefix", "_ELSE", "--body"}
	var exit exitError
	if _, errs, err := s.command(append(insert, `{"data":[{"Last_Name":"Boyle"}]}`)...); !errors.As(err, &exit) || !strings.Contains(errs, "--reply-prefixes") {
		t.Errorf("an inbox that no worker may answer to: %v, %s", err, errs)
	}
	if _, errs, err := s.command(append(insert, `{"data":[{"Last_Name":"Daly"}]}`)...); err == nil || !strings.Contains(err.Error(), "no answer came") {
		t.Errorf("another under its id: %v, %s", err, errs)
	}
	if out, _, err := s.command("queues", "pause", "demo", "10m"); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	nc, js := s.jetstream()
	// Word of a request comes when it is stored.
	word, err := nc.SubscribeSync("zoho.activity.demo")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, _, err := s.command("call", "demo", "GET", "/v8/Leads?fields=Last_Name")
		result <- err
	}()
	stored, err := word.NextMsg(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	sequence, err := strconv.ParseUint(stored.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), consumer.RequestStream)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.DeleteMsg(t.Context(), sequence); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err == nil || !strings.Contains(err.Error(), "no answer came") {
		t.Errorf("deleted by hand: %v", err)
	}
}

// A line and a lane: a request waits for the one before it with the same key
// while others go past, and is published where bulk work belongs.
func TestCallOrderAndLane(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.serve()
	nc, js := s.jetstream()
	stored, err := nc.SubscribeSync("zoho.activity.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	put := func(id string, flags ...string) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, errs, err := s.command(append([]string{
				"call", "demo", "POST", "/v8/Leads", "--id", id, "-H", "X-Test: " + id, "--body", `{"data":[{"Last_Name":"` + id + `"}]}`,
			}, flags...)...)
			if err != nil {
				err = fmt.Errorf("%w: %s", err, errs)
			}
			done <- err
		}()
		return done
	}
	of := func(id string) zohotest.Match {
		return zohotest.Match{Method: "POST", Where: func(c zohotest.Call) bool { return c.Header.Get("X-Test") == id }}
	}
	subject := func() string {
		msg, err := stored.NextMsg(time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(msg.Subject, "zoho.activity.")
	}
	hold := s.box.Zoho.Hold(zohotest.BodyRead, of("first"))
	first := put("first", "--order-key", "k", "--bulk")
	<-hold.Reached()
	if lane := subject(); lane != "demo.bulk" {
		t.Errorf("published to the lane %s", lane)
	}
	second := put("second", "--order-key", "k", "--bulk")
	if lane := subject(); lane != "demo.bulk" {
		t.Errorf("published to the lane %s", lane)
	}
	// One that came later, without the key, goes past it.
	if err := <-put("third", "--bulk"); err != nil {
		t.Fatal(err)
	}
	if lane := subject(); lane != "demo.bulk" {
		t.Errorf("published to the lane %s", lane)
	}
	if err := <-put("interactive"); err != nil {
		t.Fatal(err)
	}
	if lane := subject(); lane != "demo" {
		t.Errorf("published to the lane %s", lane)
	}
	if n := s.box.Zoho.Count(of("second")); n != 0 {
		t.Errorf("the second of a line was sent while the first was with Zoho")
	}
	hold.Release()
	for _, done := range []<-chan error{first, second} {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	// The answer of a bulk request is where any other's is.
	stream, err := js.Stream(t.Context(), consumer.ResponseStream)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.GetLastMsgForSubject(t.Context(), consumer.ResponseSubject("demo", "second")); err != nil {
		t.Error(err)
	}
}

// Who stops waiting hears where the answer will be, or that it will be nowhere.
func TestCallGivenUp(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.serve()
	if out, _, err := s.command("queues", "pause", "demo", "10m"); err != nil || !strings.Contains(out, "no request waits") {
		t.Fatalf("%v, %s", err, out)
	}
	for method, want := range map[string]string{
		"GET":    "so call again",
		"DELETE": "its response will be at zoho.responses.demo.given-up-DELETE",
	} {
		ctx, cancel := context.WithCancel(t.Context())
		progress, errs := io.Pipe()
		cmd := root()
		cmd.SetErr(errs)
		cmd.SetArgs([]string{"call", "demo", method, "/v8/Leads/1", "--id", "given-up-" + method, "--nats-url", s.box.NATSURL})
		result := make(chan error)
		go func() {
			err := cmd.ExecuteContext(ctx)
			_ = errs.Close()
			result <- err
		}()
		told := bufio.NewScanner(progress)
		for told.Scan() && !strings.Contains(told.Text(), "paused") {
		}
		go io.Copy(io.Discard, progress) // it ends with the pipe
		cancel()
		if err := <-result; err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", method, err, want)
		}
	}
	if out, _, err := s.command("queues", "resume", "demo"); err != nil || !strings.Contains(out, "2 requests wait") {
		t.Errorf("%v, %s", err, out)
	}
}

// A limit is no secret: to change it takes no keys, and the token stays as it is.
func TestLimitWithoutKeys(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	s.serve()
	if out, errs, err := s.command("connections", "limit", "demo", "3"); err != nil || errs != "" || !strings.Contains(out, "demo: 3 calls") {
		t.Fatalf("%v, %s%s", err, out, errs)
	}
	if out, errs, err := s.command("call", "demo", "POST", "/v8/Leads", "--body", `{"data":[{"Last_Name":"Byron"}]}`); err != nil || !strings.HasSuffix(out, "}\n") {
		t.Errorf("%v, %s%s", err, out, errs)
	}
	if out, _, err := s.command("connections", "show", "demo", "--encryption-keys", s.keys); err != nil || !strings.Contains(out, "status        active") {
		t.Errorf("%v, %s", err, out)
	}
}
