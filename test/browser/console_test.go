package browser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/nats-io/nats.go"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/secret"
)

func TestConnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.open("/")
	b.sees("No Zoho account is connected yet")
	b.press("Connect an account")
	b.fill("nickname", "Acme Sales (EMEA)")
	name := get(b, chromedp.Value(chromedp.CSS("#name")))
	if name != "acme-sales-emea" {
		t.Fatalf("the name is derived as %q", name)
	}
	b.fill("name", "acme")
	b.press("Continue to Zoho")
	b.accept(ada)
	b.sees("Acme Sales (EMEA) is connected", "Ada Lovelace", "ada@example.com", "Analytical Engines Ltd", "zoho.requests.acme")
	if where, _ := b.look(); where != w.base+"/connections/acme" {
		t.Errorf("ends at %s", where)
	}
	b.press("Test")
	b.sees("The connection works", "ada@example.com")
	b.open("/")
	b.sees("1 connected", "Acme Sales (EMEA)", "Connected")
	w.publish("acme", "one")
	w.eventually("the request is answered", func() bool { return w.answered("acme") == 1 })
}

func TestDeny(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.begin("Acme")
	b.press("Reject")
	b.sees("Access was not given", "begin again")
	if n := len(w.store.All()); n != 0 || w.exchanges() != 0 {
		t.Errorf("%d connections, %d exchanges", n, w.exchanges())
	}
}

func TestConnectTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.connect("Acme", ada)
	b.begin("Acme two")
	b.accept(ada)
	b.sees("This Zoho user is connected already", "Ada Lovelace")
	b.press("Cancel and give the access back")
	b.sees("Nothing was changed")
	if w.revocations() != 1 {
		t.Errorf("%d revocations", w.revocations())
	}
	b.begin("Acme two")
	b.accept(ada)
	b.sees("This Zoho user is connected already")
	b.press("Re-authorize acme")
	b.sees("Acme is connected again")
	all := w.store.All()
	if len(all) != 1 || all[0].Grant != 2 {
		t.Fatalf("connections: %+v", all)
	}
}

func TestReauthorizeWhileRequestsWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.connect("Acme", ada)
	w.Zoho.RevokeRefreshToken(w.refresh("acme"))
	b.open("/")
	b.sees("1 connected")
	b.do(chromedp.Evaluate[chromedp.Void](`window.marked = true`))
	const n = 50
	for i := range n {
		w.publish("acme", fmt.Sprint("waiting-", i))
	}
	b.sees("Revoked", "50 waiting", "1 needs you") // by itself
	marked := get(b, chromedp.Evaluate[bool](`window.marked === true`))
	said := get(b, chromedp.TextContent(chromedp.CSS("#live")))
	if !marked || said != "Acme: Revoked" {
		t.Errorf("live: same page %v, said %q", marked, said)
	}
	b.do(chromedp.Click(chromedp.CSS(`tr[data-row=acme] .button`)))
	b.sees("Re-authorize Acme", "so nothing changes for its callers")
	b.press("Continue to Zoho")
	b.accept(ada)
	b.sees("Acme is connected again", "go on by themselves")
	w.eventually("all are answered", func() bool { return w.answered("acme") == n })
}

func TestDisconnect(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.connect("Acme", ada)
	b.press("Disconnect")
	b.sees("Disconnect Acme?")
	b.press("Keep it")
	b.sees("Zoho account")
	b.press("Disconnect")
	b.sees("Disconnect Acme?")
	b.press("Disconnect")
	b.sees("acme is disconnected", "Disconnected (1)")
	if w.revocations() != 1 || len(w.store.All()) != 0 {
		t.Errorf("%d revocations", w.revocations())
	}
}

func TestShareLinkTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ops, guest := w.tab(), w.tab()
	ops.open("/connect")
	ops.fill("nickname", "Acme")
	ops.press("Make a link to send instead")
	ops.sees("A link to send")
	link := get(ops, chromedp.Value(chromedp.CSS("#link")))
	guest.open(link)
	guest.sees("Connect your Zoho account", "your password stays there")
	guest.press("Continue to Zoho")
	guest.accept(ada)
	guest.sees("Acme is connected", "You can close this page")
	guest.open(link)
	guest.sees("This link was used already", "Ask whoever sent it")
	if record, ok := w.store.Get("acme"); !ok || record.UserID != ada {
		t.Errorf("record: %+v", record)
	}
}

// callbackOf begins in the tab and returns the callback that Zoho would send it to.
func (w *world) callbackOf(b *tab, nickname, user string) url.Values {
	b.begin(nickname)
	where, _ := b.look()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Get(where + "&approve=" + user)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	u, err := url.Parse(resp.Header.Get("Location"))
	if err != nil {
		w.t.Fatal(err)
	}
	return u.Query()
}

func TestForgedState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	attacker, victim := w.tab(), w.tab()
	theirs := w.callbackOf(attacker, "evil", ada)
	victim.open("/oauth/callback?" + theirs.Encode())
	victim.sees("This sign-in can't be completed", "did not begin in this browser")
	theirs.Set("state", strings.Repeat("x", 43))
	attacker.open("/oauth/callback?" + theirs.Encode())
	attacker.sees("This sign-in can't be completed")
	if w.exchanges() != 0 || len(w.store.All()) != 0 {
		t.Errorf("%d exchanges", w.exchanges())
	}
}

func TestForgedAccountsServer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	asked := make(chan string, 10)
	evil := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path }))
	t.Cleanup(evil.Close)
	b := w.tab()
	query := w.callbackOf(b, "Acme", ada)
	query.Set("accounts-server", evil.URL)
	b.open("/oauth/callback?" + query.Encode())
	b.sees("The answer did not come from Zoho", "Nothing was sent there")
	if len(asked) != 0 || w.exchanges() != 0 {
		t.Error("the code was sent")
	}
}

// Everything works without JavaScript.
func TestWithoutJavaScript(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	// What the test itself asks of the page is not the page's script.
	b.connect("Acme", ada)
	if _, ok := w.store.Get("acme"); !ok {
		t.Fatal("not connected")
	}
	b.press("Disconnect")
	b.sees("Disconnect Acme?")
	b.press("Disconnect")
	b.sees("acme is disconnected")
	b.open("/connect")
	b.fill("nickname", "Globex")
	b.press("Make a link to send instead")
	b.sees("A link to send")
	if _, text := b.look(); strings.Contains(text, "Copy Good until") { // it takes a script
		t.Errorf("there is a button that does nothing: %s", text)
	}
}

// A list that is no longer live says so, until it is.
func TestSaysWhenStale(t *testing.T) {
	t.Parallel()
	const notice = "The worker does not answer"
	w := newWorld(t)
	b := w.tab()
	for _, page := range []string{"/", "/orgs"} {
		b.open(page)
		b.sees("zoho-worker")
		if _, text := b.look(); strings.Contains(text, notice) {
			t.Fatalf("%s: at once: %s", page, text)
		}
		b.do(chromedp.Evaluate[chromedp.Void](`window.was = window.fetch; window.fetch = () => Promise.reject(new Error("away"))`))
		b.sees(notice)
		b.do(chromedp.Evaluate[chromedp.Void](`window.fetch = window.was`))
		w.eventually(page+" is live again", func() bool { _, text := b.look(); return text != "" && !strings.Contains(text, notice) })
	}
}

// Whatever names people at Zoho have, and whatever callers send: nothing is wider than
// the window, and no button is out of reach.
func TestLongNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	long := strings.Repeat("Rindfleischetikettierung", 4)
	name := strings.Repeat("n", 63)
	b.connect("Acme", ada)
	if _, err := w.store.Add(t.Context(), connection.Connection{
		Name: name, Nickname: long, Location: "us", OrgID: euOrg, OrgName: long + " mbH", UserID: "long", UserName: long + " <" + long + "@example.com>",
	}, secret.New("dead")); err != nil {
		t.Fatal(err)
	}
	w.publish(name, "a") // for which Zoho refuses the token: the row says why
	w.bury(name, "invalid_request", long+long, long)
	again := strings.Repeat("m", 63)
	for range 2 { // the second time Grace is asked whether she wants that one
		b.do(chromedp.EmulateViewport(1280, 800))
		b.open("/connect")
		b.fill("nickname", "Globex")
		b.fill("name", again)
		if _, there := w.store.Get(again); there {
			b.fill("name", "globex")
		}
		b.press("Continue to Zoho")
		b.accept(grace)
		b.sees(again)
	}
	for _, page := range []string{
		"", "/", "/connections/" + name, "/connections/" + name + "/reauthorize", "/connections/" + name + "/disconnect", "/orgs", "/dead", "/dead/1", "/dead/drop?number=1",
	} {
		if page == "" {
			b.sees("This Zoho user is connected already", "Re-authorize "+again)
		} else {
			b.open(page)
		}
		if page == "/" {
			b.sees("Revoked")
		}
		for _, width := range []int64{1280, 1161, 1000, 360, 320} {
			b.do(chromedp.EmulateViewport(width, 800))
			over := get(b, chromedp.Evaluate[[]string](`[document.documentElement, ...document.querySelectorAll("main a, main button")]
				.filter(e => e.scrollWidth > e.clientWidth + 1 && e === document.documentElement || e.getBoundingClientRect().right > innerWidth + 1)
				.map(e => e.tagName + " " + (e.id || e.className || e.innerText.slice(0, 30)))`))
			if len(over) > 0 {
				t.Errorf("%s at %d: too wide: %q", page, width, over)
			}
		}
	}
}

// The whole way by keyboard, with the focus to be seen at every step.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.open("/")
	b.sees("No Zoho account")
	focused := func() string {
		got := get(b, chromedp.Evaluate[struct{ Text, Outline string }](`(() => { const e = document.activeElement; const c = getComputedStyle(e.closest(".choice") || e);
			return { Text: (e.innerText || e.name || "").trim(), Outline: c.outlineStyle + " " + c.outlineWidth } })()`))
		if !strings.HasPrefix(got.Outline, "solid 3px") {
			t.Errorf("%q has the outline %s", got.Text, got.Outline)
		}
		return got.Text
	}
	tabTo := func(text string) {
		t.Helper()
		var seen []string
		for range 30 {
			b.do(chromedp.KeyEvent(kb.Tab))
			got := focused()
			if got == text {
				return
			}
			seen = append(seen, got)
		}
		t.Fatalf("%q can't be reached: %q", text, seen)
	}
	b.do(chromedp.KeyEvent(kb.Tab))
	if got := focused(); got != "Skip to content" {
		t.Fatalf("first is %q", got)
	}
	b.do(chromedp.KeyEvent(kb.Enter))
	tabTo("Connect an account")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.sees("You will be sent to Zoho")
	b.do(chromedp.KeyEvent("Acme")) // the nickname has the focus
	tabTo("Continue to Zoho")
	b.do(chromedp.KeyEvent(kb.Enter))
	b.sees("This app would like access")
}

// A wrong form says what is wrong, beside the field and in a list that has the focus.
func TestFormFaults(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.open("/connect")
	b.press("Continue to Zoho")
	b.sees("Please look at this again", "Say what people call")
	time.Sleep(100 * time.Millisecond) // for the load event
	focus := get(b, chromedp.Evaluate[string](`document.activeElement.id`))
	invalid := get(b, chromedp.Evaluate[string](`document.querySelector("[aria-invalid]").getAttribute("aria-describedby")`))
	if focus != "faults" || !strings.Contains(invalid, "nickname-fault") {
		t.Errorf("focus on %q, described by %q", focus, invalid)
	}
}

// The statuses differ in words and signs, not in colour alone, and what needs a person
// comes first.
func TestStatusWithoutColour(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.connect("Acme", ada)
	b.connect("Globex", grace)
	globex, err := w.store.Fetch(t.Context(), "globex")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.MarkRevoked(t.Context(), globex, "Zoho no longer accepts the refresh token (invalid_code)"); err != nil {
		t.Fatal(err)
	}
	w.eventually("it is revoked", func() bool { c, _ := w.store.Get("globex"); return c.Status == connection.Revoked })
	b.open("/")
	signs := get(b, chromedp.Evaluate[[]string](`[...document.querySelectorAll("tbody .badge")].map(b => b.innerText.trim() + " " + b.querySelector("svg").innerHTML.length)`))
	if len(signs) != 2 || signs[0] == signs[1] || !strings.HasPrefix(signs[0], "Revoked") || !strings.HasPrefix(signs[1], "Connected") {
		t.Errorf("statuses: %q", signs)
	}
}

// bury puts a dead letter onto the stream, as a worker would.
func (w *world) bury(connection, code, reason, request string) {
	w.t.Helper()
	msg := &nats.Msg{Subject: "zoho.dead." + connection, Data: []byte(request), Header: nats.Header{
		dead.CodeHeader: {code}, dead.ReasonHeader: {reason}, dead.SubjectHeader: {"zoho.requests." + connection},
		dead.ReceivedHeader: {time.Now().Add(-time.Minute).UTC().Format(time.RFC3339)}, "X-Caller": {"billing"},
		"traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
	}}
	if _, err := w.js.PublishMsg(w.t.Context(), msg); err != nil {
		w.t.Fatal(err)
	}
}

// Dead letters are found, read, replayed and dropped, without a mouse or JavaScript.
func TestDeadLetters(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	b := w.tab()
	b.connect("Acme", ada)
	call(b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	w.bury("acme", "id_conflict", "the id was answered for a request with other content", `{"id":"again","method":"GET","url":"/v8/Leads?fields=Last_Name"}`)
	w.bury("acme", "invalid_request", "no id can be read", "no JSON")
	w.bury("globex", "invalid_request", "no id can be read", "no JSON either")
	b.open("/dead")
	b.sees("Dead letters", "globex", "other content")
	b.do(chromedp.Evaluate[chromedp.Void](`document.querySelector("#code").focus()`), chromedp.KeyEvent("id_c"), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter))
	b.sees("other content", "Replay all that are filtered")
	b.lacks("globex")
	b.press("Replay all that are filtered")
	b.sees("Replay 1 dead letter?", "published again as it came")
	b.press("Replay")
	b.sees("1 dead letter replayed")
	w.eventually("the request is answered", func() bool { return w.answered("acme") == 1 })
	b.open("/dead?connection=globex")
	b.press("Open dead letter 3")
	b.sees("Dead letter 3", "no JSON either", "billing", "published to zoho.requests.globex")
	b.press("Drop")
	b.sees("Drop dead letter 3?")
	b.press("Leave it")
	b.sees("no JSON either")
	b.press("Drop")
	b.sees("deleted for good")
	b.press("Drop")
	b.sees("1 dead letter dropped", "no id can be read")
	b.lacks("globex")
}

// lacks checks that the page, as it stands, doesn't say that.
func (b *tab) lacks(said string) {
	b.t.Helper()
	if _, text := b.look(); strings.Contains(text, said) {
		b.t.Errorf("the page says %q: %.800s", said, text)
	}
}
