package main

import (
	"bytes"
	"context"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/consumer"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho"
	"zoho-worker/internal/zoho/zohotest"
)

// shell runs commands as a person would, against a box.
type shell struct {
	t    *testing.T
	box  *devbox.Box
	keys string
}

func newShell(t *testing.T) *shell {
	t.Helper()
	box, err := devbox.Start(devbox.Options{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(box.Close)
	box.Zoho.SeedPeople(devbox.OrgID)
	return &shell{t: t, box: box, keys: secret.Generate().Reveal()}
}

func (s *shell) jetstream() (*nats.Conn, jetstream.JetStream) {
	s.t.Helper()
	nc, err := nats.Connect(s.box.NATSURL)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		s.t.Fatal(err)
	}
	return nc, js
}

// output is written by a command and read by the test at the same time.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

type started struct {
	out  *output
	done chan error
}

func (s *shell) start(stdin string, args ...string) *started {
	cmd := root()
	run := &started{out: &output{}, done: make(chan error, 1)}
	cmd.SetOut(run.out)
	cmd.SetErr(run.out)
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetArgs(append(append([]string{"connections"}, args...), "--nats-url", s.box.NATSURL, "--encryption-keys", s.keys,
		"--zoho-client-id", "1000.X", "--zoho-client-secret", "client-secret", "--zoho-accounts-url", s.box.ZohoURL, "--zoho-api-url", s.box.ZohoURL))
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	go func() {
		defer cancel()
		run.done <- cmd.ExecuteContext(ctx)
	}()
	return run
}

func (s *shell) run(args ...string) (string, error) {
	run := s.start("", args...)
	err := <-run.done
	return run.out.String(), err
}

// want runs a command that must work and say all of that.
func (s *shell) want(args []string, says ...string) {
	s.t.Helper()
	out, err := s.run(args...)
	if err != nil {
		s.t.Fatalf("%v: %v\n%s", args, err, out)
	}
	contains(s.t, out, says...)
}

func contains(t *testing.T, out string, says ...string) {
	t.Helper()
	for _, text := range says {
		if !strings.Contains(out, text) {
			t.Fatalf("%q is not in: %s", text, out)
		}
	}
}

// address waits for the address that the command prints.
func (s *shell) address(run *started, pattern string) string {
	s.t.Helper()
	form := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if found := form.FindString(run.out.String()); found != "" && strings.Contains(run.out.String(), "waiting") {
			return found
		}
	}
	s.t.Fatalf("no address in %s", run.out.String())
	return ""
}

// signIn is a person at the consent page that a command has printed.
func (s *shell) signIn(run *started, user string) (page string, err error) {
	s.t.Helper()
	address := s.address(run, regexp.QuoteMeta(s.box.ZohoURL)+`/oauth/v2/auth\S+`)
	resp, err := http.Get(address + "&approve=" + user)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, _ := io.ReadAll(resp.Body)
	return string(body), <-run.done
}

func TestConnectionsCommands(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	loopback := []string{"--listen", "127.0.0.1:0"}

	run := s.start("", append([]string{"add", "acme", "--nickname", "Acme sales"}, loopback...)...)
	page, err := s.signIn(run, devbox.UserID)
	if err != nil || !strings.Contains(page, "Connected") {
		t.Fatalf("%v, %s, %s", err, page, run.out)
	}
	contains(t, run.out.String(), "added acme (us, production, 20 places): Demo User <demo@example.com>, Demo Ltd")

	// A forged callback doesn't end the wait; the same user is not connected twice.
	run = s.start("n\n", append([]string{"add", "acme2"}, loopback...)...)
	address := s.address(run, `http\S+/oauth/v2/auth\S+`)
	u, _ := url.Parse(address)
	resp, err := http.Get(u.Query().Get("redirect_uri") + "?code=x&state=forged&location=us&accounts-server=" + url.QueryEscape(s.box.ZohoURL))
	if err != nil || resp.StatusCode != 400 {
		t.Fatal(err, resp)
	}
	_ = resp.Body.Close()
	if _, err = s.signIn(run, devbox.UserID); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Fatalf("%v: %s", err, run.out)
	}
	run = s.start("y\n", append([]string{"add", "acme2"}, loopback...)...)
	if _, err = s.signIn(run, devbox.UserID); err != nil {
		t.Fatal(err)
	}
	contains(t, run.out.String(), "has the connection acme already", "re-authorized acme")

	run = s.start("", append([]string{"reauthorize", "acme"}, loopback...)...)
	if _, err = s.signIn(run, devbox.UserID); err != nil {
		t.Fatal(err)
	}
	run = s.start("", append([]string{"reauthorize", "acme"}, loopback...)...)
	if _, err = s.signIn(run, zohotest.DemoEuropean); err == nil || !strings.Contains(err.Error(), "data centre") {
		t.Fatalf("an account elsewhere: %v", err)
	}

	// Zoho's self-client, and a refresh token.
	code := s.box.Zoho.AuthorizationCode(zohotest.DemoColleague, zohotest.Consent{Scopes: consent.DefaultScopes})
	s.want([]string{"add", "grace", "--dc", "us", "--code", code}, "added grace", "Grace Hopper")
	token := s.box.Zoho.GrantRefreshToken(zohotest.DemoEuropean)
	s.want([]string{"add", "elif", "--dc", "eu", "--refresh-token", token, "--org-id", zohotest.DemoEUOrg, "--user-id", zohotest.DemoEuropean}, "added elif")
	_, err = s.run("add", "elif2", "--dc", "eu", "--refresh-token", "another", "--org-id", zohotest.DemoEUOrg, "--user-id", zohotest.DemoEuropean)
	if err == nil || !strings.Contains(err.Error(), "connections reauthorize elif") {
		t.Fatalf("a second one: %v", err)
	}
	for flag, want := range map[string]string{"--edition=gold": "Zoho's editions are free, ", "--edition=none": "editions", "--org-id=2007823381b": "are digits"} {
		if _, err = s.run("add", "slip", "--refresh-token", "another", flag); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	if _, err = s.run("add", "late", "--dc", "us", "--code", code); err == nil || !strings.Contains(err.Error(), "oauth_code_expired") {
		t.Fatalf("a used code: %v", err)
	}

	s.want([]string{"list"}, "acme", "Grace Hopper", "active")
	s.want([]string{"show", "acme"}, "Demo User", "1 of 20 refresh tokens", "3 so far")
	s.want([]string{"show", "acme", "--json"}, `"org_name": "Demo Ltd"`)
	s.want([]string{"test", "elif"}, "The connection works", "elif@example.eu")

	// What is not named stays as it is.
	s.want([]string{"limit", "elif", "7"}, "elif: 7 calls of its org in flight at most\n")
	s.want([]string{"limit", "elif", "--credits-per-day", "2000"}, "elif: 7 calls of its org in flight at most, 2000 credits in 24 hours\n")
	s.want([]string{"limit", "elif", "--ordered"}, "at most, 2000 credits in 24 hours, one request after the other")
	s.want([]string{"limit", "elif", "0", "--ordered=false", "--credits-per-day", "0"}, "elif: 10 calls of its org in flight at most\n")
	// Who looks needs no keys, nor who changes a limit.
	looker := &shell{t: s.t, box: s.box}
	looker.want([]string{"list"}, "acme", "active")
	looker.want([]string{"show", "acme"}, "active", "3 so far")
	looker.want([]string{"limit", "acme", "5"}, "acme: 5 calls of its org in flight at most")
	if _, err := looker.run("reseal"); err == nil || !strings.Contains(err.Error(), "keys are needed") {
		t.Errorf("without keys, reseal: %v", err)
	}
	other := &shell{t: s.t, box: s.box, keys: secret.Generate().Reveal()}
	other.want([]string{"list"}, "acme", "open refresh token")
	s.want([]string{"show", "elif"}, " by "+actor())
	// The smallest limit of an org is its limit, whichever of its connections is asked about.
	s.want([]string{"add", "p8", "--refresh-token", "x", "--org-id", "8", "--concurrency", "8"}, "added p8")
	s.want([]string{"add", "p3", "--refresh-token", "y", "--org-id", "8", "--concurrency", "3"}, "added p3")
	s.want([]string{"limit", "p8", "9"}, "p8: 3 calls of its org in flight at most, the limit of p3: the smallest of the org's counts (its own is 9)\n")
	if out, err := s.run("list"); err != nil || !regexp.MustCompile(`(?m)^p8 .* 3 +active$`).MatchString(out) {
		t.Errorf("%v\n%s", err, out)
	}
	for _, name := range []string{"p8", "p3"} {
		s.want([]string{"remove", name, "--keep-grant"}, "removed "+name)
	}
	if _, err := s.run("limit", "nope", "5"); err == nil || err.Error() != "there is no connection nope: see `worker connections list`" {
		t.Errorf("a limit of nobody: %v", err)
	}
	if _, err := s.run("limit", "elif"); err == nil || !strings.Contains(err.Error(), "what is the limit to be?") {
		t.Errorf("a limit of nothing: %v", err)
	}

	// Another key in front, everything sealed anew, the old one taken away.
	old := s.keys
	fresh := strings.Replace(secret.Generate().Reveal(), "dev:", "new:", 1)
	s.keys = fresh + "," + old
	s.want([]string{"reseal"}, "sealed 3 of 3 connections anew with key new")
	s.keys = fresh
	s.want([]string{"test", "acme"}, "The connection works")
	s.keys = old
	s.want([]string{"list"}, `sealed with key "new", which is not among the encryption keys`)
	s.keys = fresh

	revoked := func() int {
		return s.box.Zoho.Count(zohotest.Match{Endpoint: zohotest.Accounts, Path: "/oauth/v2/token/revoke", Where: func(c zohotest.Call) bool { return c.Code == "success" }})
	}
	before := revoked()
	s.want([]string{"remove", "acme"}, "removed acme and revoked its access at Zoho")
	s.want([]string{"remove", "elif", "--keep-grant"}, "was not revoked")
	if n := revoked() - before; n != 1 {
		t.Errorf("%d revocations", n)
	}
	_, js := s.jetstream()
	events, err := js.Stream(t.Context(), consumer.EventStream)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"acme", "elif"} {
		if told, err := events.GetLastMsgForSubject(t.Context(), "zoho.events."+name); err != nil || !strings.Contains(string(told.Data), `"disconnected"`) {
			t.Errorf("%s: the world was not told: %v", name, err)
		}
	}
	if _, err := s.run("remove", "acme"); err == nil || !strings.Contains(err.Error(), "there is no connection acme") {
		t.Errorf("removed twice: %v", err)
	}
	if out, err := s.run("test", "grace"); err != nil || strings.Contains(out, "1000.") {
		t.Errorf("%v, %s", err, out)
	}
}

// A one-time link is printed, and its use awaited.
func TestConnectionsLink(t *testing.T) {
	t.Parallel()
	s := newShell(t)
	config := app.Defaults()
	config.NATSURL, config.RedisURL, config.EncryptionKeys = s.box.NATSURL, secret.New(s.box.RedisURL), secret.New(s.keys)
	config.ZohoClientID, config.ZohoClientSecret = "1000.X", secret.New("client-secret")
	config.ZohoAccountsURL, config.ZohoAPIURL, config.HTTPAddr, config.ConsoleAuth = s.box.ZohoURL, s.box.ZohoURL, "127.0.0.1:0", "none"
	worker, err := app.Start(t.Context(), config, app.Logger(io.Discard, "error", "json"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { worker.Stop(context.Background()) })
	run := s.start("", "add", "acme", "--link", "--public-url", "http://"+worker.HTTPAddr)
	link := s.address(run, `http\S+/link/\S+`)
	jar, _ := cookiejar.New(nil)
	client := &http.Client{Jar: jar}
	page, err := client.Get(link)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(page.Body)
	_ = page.Body.Close()
	form := regexp.MustCompile(`name="form" value="([^"]+)"`).FindSubmatch(body)
	if form == nil {
		t.Fatalf("no form: %s", body)
	}
	s.box.Zoho.ApproveFor(devbox.UserID)
	done, err := client.PostForm(link, url.Values{"form": {string(form[1])}})
	if err != nil {
		t.Fatal(err)
	}
	body, _ = io.ReadAll(done.Body)
	_ = done.Body.Close()
	leave := regexp.MustCompile(`content="0; url=([^"]+)"`).FindSubmatch(body)
	if leave == nil {
		t.Fatalf("the page leads nowhere: %s", body)
	}
	if done, err = client.Get(html.UnescapeString(string(leave[1]))); err != nil {
		t.Fatal(err)
	}
	body, _ = io.ReadAll(done.Body)
	_ = done.Body.Close()
	if err := <-run.done; err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	contains(t, run.out.String(), "added acme")
	contains(t, string(body), "acme is connected")
}

// An environment without a host at Zoho is refused before it is stored; one that isn't
// known yet is asked for.
func TestKnownHost(t *testing.T) {
	t.Parallel()
	for _, dc := range zoho.DataCenters() {
		for environment, host := range map[string]string{connection.Production: dc.API, connection.Sandbox: dc.Sandbox, connection.Developer: dc.Developer} {
			if err := knownHost(dc.Location, environment); (err == nil) != (host != "") {
				t.Errorf("%s %s at %q: %v", dc.Location, environment, host, err)
			}
		}
	}
	if err := knownHost("", connection.Sandbox); err != nil {
		t.Error(err)
	}
}
