// Package browser tries the console in a real browser: Debian's chromium,
// without a window. It is a module of its own so that nobody who builds the
// worker needs what drives it.
//
//	npm ci && go test ./...                      skips, and says so, where there is no chromium
//	REQUIRE_CHROMIUM=1 go test ./...             insists on it
//	UPDATE_SCREENSHOTS=1 go test -run Screenshots ./...   writes docs/images
package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/app"
	"zoho-worker/internal/connection"
	"zoho-worker/internal/devbox"
	"zoho-worker/internal/secret"
	"zoho-worker/internal/zoho/zohotest"
)

const patience = 20 * time.Second

// chromium is the browser that all tests share; each has a profile of its own in it.
var chromium context.Context

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		if os.Getenv("REQUIRE_CHROMIUM") == "1" {
			fmt.Fprintln(os.Stderr, "browser tests: REQUIRE_CHROMIUM=1, and there is no chromium: apt-get install chromium")
			return 1
		}
		fmt.Println("browser tests: skipped, there is no chromium here: apt-get install chromium")
		return 0
	}
	profile, err := os.MkdirTemp("", "zoho-worker-browser-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(profile)
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.UserDataDir(profile), chromedp.WSURLReadTimeout(time.Minute),
	}
	for _, flag := range []string{
		"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-extensions",
		"disable-dev-shm-usage", "hide-scrollbars", "disable-default-apps", "mute-audio",
	} {
		options = append(options, chromedp.Flag(flag, true))
	}
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	defer stop()
	browser, closeBrowser := chromedp.NewContext(allocator)
	defer closeBrowser()
	if err := chromedp.Do(browser); err != nil {
		fmt.Fprintln(os.Stderr, "browser tests: start chromium:", err)
		return 1
	}
	chromium = browser
	return m.Run()
}

// The people of the simulator.
const (
	ada   = "user-ada"
	grace = "user-grace"
	elif  = "user-elif"
	euOrg = "20078233816"
)

// world is a worker with its console, and all that it needs.
type world struct {
	*devbox.Box
	t     *testing.T
	base  string
	keys  secret.Text
	store *connection.Store
	js    jetstream.JetStream
}

func newWorld(t *testing.T) *world {
	t.Helper()
	box, err := devbox.Start(devbox.Options{DataDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(box.Close)
	box.Zoho.AddOrg(zohotest.Org{ID: devbox.OrgID, Name: "Analytical Engines Ltd", Concurrency: 20})
	box.Zoho.AddOrg(zohotest.Org{ID: euOrg, Name: "Northwind Europe BV", Concurrency: 15, Edition: "professional"})
	box.Zoho.AddUser(zohotest.User{ID: ada, Name: "Ada Lovelace", Email: "ada@example.com", OrgID: devbox.OrgID})
	box.Zoho.AddUser(zohotest.User{ID: grace, Name: "Grace Hopper", Email: "grace@example.com", OrgID: devbox.OrgID})
	box.Zoho.AddUser(zohotest.User{ID: elif, Name: "Elif Yılmaz", Email: "elif@example.eu", OrgID: euOrg, Location: "eu"})
	box.Zoho.Seed(devbox.OrgID, "Leads", map[string]any{"Last_Name": "Seed"})
	config := app.Defaults()
	config.NATSURL, config.RedisURL = box.NATSURL, secret.New(box.RedisURL)
	config.ZohoClientID, config.ZohoClientSecret = "1000.TEST", secret.New("test-secret")
	config.ZohoAccountsURL, config.ZohoAPIURL = box.ZohoURL, box.ZohoURL
	config.EncryptionKeys, config.HTTPAddr, config.ConsoleAuth = secret.Generate(), "127.0.0.1:0", "none"
	config.CallTimeout, config.StopTimeout = 5*time.Second, 10*time.Second
	worker, err := app.Start(t.Context(), config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		worker.Stop(ctx)
	})
	nc, err := nats.Connect(box.NATSURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return &world{Box: box, t: t, base: "http://" + worker.HTTPAddr, keys: config.EncryptionKeys, store: worker.Connections, js: js}
}

// refresh is the refresh token of a connection, to revoke it at the simulator.
func (w *world) refresh(name string) string {
	w.t.Helper()
	keyring, err := secret.ParseKeyring(w.keys.Reveal())
	if err != nil {
		w.t.Fatal(err)
	}
	record, err := w.store.Fetch(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	token, err := record.RefreshToken(keyring)
	if err != nil {
		w.t.Fatal(err)
	}
	return token.Reveal()
}

func (w *world) publish(name, id string) {
	w.t.Helper()
	request, _ := json.Marshal(map[string]any{"id": id, "method": "GET", "url": "/v8/Leads", "query": map[string]any{"fields": "Last_Name"}})
	if _, err := w.js.Publish(w.t.Context(), "zoho.requests."+name, request); err != nil {
		w.t.Fatal(err)
	}
}

// answered counts the stored responses of a connection with status 200.
func (w *world) answered(name string) int {
	w.t.Helper()
	stream, err := w.js.Stream(w.t.Context(), "ZOHO_RESPONSES")
	if err != nil {
		w.t.Fatal(err)
	}
	info, err := stream.Info(w.t.Context(), jetstream.WithSubjectFilter("zoho.responses."+name+".*"))
	if err != nil {
		w.t.Fatal(err)
	}
	return len(info.State.Subjects)
}

func (w *world) exchanges() int {
	return w.Zoho.Count(zohotest.Match{Endpoint: zohotest.Token, Where: func(c zohotest.Call) bool { return c.GrantType == "authorization_code" }})
}

func (w *world) revocations() int {
	return w.Zoho.Count(zohotest.Match{Endpoint: zohotest.Accounts, Path: "/oauth/v2/token/revoke", Where: func(c zohotest.Call) bool { return c.Code == "success" }})
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("not in %s: %s", patience, what)
		}
	}
}

// tab is a tab of a browser profile of its own.
type tab struct {
	t    *testing.T
	ctx  context.Context
	base string

	mu     sync.Mutex
	faults []string
}

func (w *world) tab() *tab {
	w.t.Helper()
	ctx, cancel := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext())
	w.t.Cleanup(cancel)
	b := &tab{t: w.t, ctx: ctx, base: w.base}
	err := chromedp.Listen(ctx, func(event any) {
		fault := ""
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			fault = e.ExceptionDetails.Text
			if e.ExceptionDetails.Exception != nil {
				fault += " " + e.ExceptionDetails.Exception.Description
			}
		case *log.EventEntryAdded:
			// That a page has the status 4xx is no fault of it.
			if e.Entry.Level == log.EntryLevelError && !strings.HasPrefix(e.Entry.Text, "Failed to load resource: the server responded") {
				fault = e.Entry.Text
			}
		}
		if fault != "" {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.faults = append(b.faults, fault)
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	call(b, log.Enable, cdp.Empty{})
	b.do(chromedp.EmulateViewport(1280, 800))
	w.t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, fault := range b.faults {
			w.t.Errorf("the browser complains: %s", fault)
		}
	})
	return b
}

// do takes steps in the tab.
func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		where, text := b.look()
		b.t.Fatalf("%v\nat %s: %.600s", err, where, text)
	}
}

// get runs an action in the tab for its value.
func get[T any](b *tab, action chromedp.Action[T]) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, action)
	if err != nil {
		where, text := b.look()
		b.t.Fatalf("%v\nat %s: %.600s", err, where, text)
	}
	return value
}

// call runs a command of the browser's protocol.
func call[P, R any](b *tab, command cdp.Command[P, R], params P) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, command, params); err != nil {
		b.t.Fatal(err)
	}
}

func (b *tab) open(to string) {
	b.t.Helper()
	if strings.HasPrefix(to, "/") {
		to = b.base + to
	}
	b.do(chromedp.Navigate(to))
}

// look is the address and the text of the page; empty while it changes.
func (b *tab) look() (where, text string) {
	ctx, cancel := context.WithTimeout(b.ctx, 5*time.Second)
	defer cancel()
	both, err := chromedp.Run(ctx, chromedp.Evaluate[[]string](`[location.href, document.body ? document.body.innerText : ""]`))
	if err != nil || len(both) != 2 {
		return "", ""
	}
	return both[0], strings.Join(strings.Fields(both[1]), " ")
}

// sees waits until the page says all of that.
func (b *tab) sees(texts ...string) {
	b.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		where, text := b.look()
		missing := ""
		for _, want := range texts {
			if !strings.Contains(text, want) {
				missing = want
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			b.t.Fatalf("the page does not say %q: %s: %.1500s", missing, where, text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// press clicks the button or link with that text.
func (b *tab) press(text string) {
	b.t.Helper()
	b.do(chromedp.Click(chromedp.Search(fmt.Sprintf(`//main//*[self::button or self::a or self::summary][normalize-space()=%q]`, text)), chromedp.NodeVisible))
}

func (b *tab) fill(id, value string) {
	b.t.Helper()
	b.do(chromedp.WaitVisible(chromedp.CSS("#"+id)),
		chromedp.Evaluate[chromedp.Void](fmt.Sprintf(`(e => { e.focus(); e.select() })(document.getElementById(%q))`, id)), chromedp.KeyEvent(value))
}

// accept is a person at Zoho.
func (b *tab) accept(user string) {
	b.t.Helper()
	b.sees("This app would like access")
	b.do(chromedp.Click(chromedp.CSS(fmt.Sprintf(`input[value=%q]`, user))))
	b.press("Accept")
}

func (b *tab) begin(nickname string) {
	b.t.Helper()
	b.open("/connect")
	b.fill("nickname", nickname)
	b.press("Continue to Zoho")
	b.sees("This app would like access")
}

func (b *tab) connect(nickname, user string) {
	b.t.Helper()
	b.begin(nickname)
	b.accept(user)
	b.sees(nickname + " is connected")
}

// root is the repository.
func root() string {
	dir, _ := filepath.Abs("../..")
	return dir
}
