package browser

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"

	"zoho-worker/internal/devbox"
)

// dark sets the colour scheme that the person prefers.
func (b *tab) dark(on bool) {
	b.t.Helper()
	value := "light"
	if on {
		value = "dark"
	}
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}},
	})
}

// axe checks the page as it stands.
func (b *tab) axe(source, what string) {
	b.t.Helper()
	b.do(chromedp.Evaluate[chromedp.Void](source + ";undefined"))
	found := get(b, chromedp.Evaluate[string](`axe.run(document, { resultTypes: ["violations"] }).then(r => JSON.stringify(r.violations.map(v => ({
			Rule: v.id, Impact: v.impact, Help: v.help, Where: v.nodes.map(n => n.target.join(" ") + ": " + n.failureSummary) }))))`, chromedp.EvalAwaitPromise))
	var violations []struct {
		Rule, Impact, Help string
		Where              []string
	}
	if err := json.Unmarshal([]byte(found), &violations); err != nil {
		b.t.Fatal(err)
	}
	for _, v := range violations {
		line := fmt.Sprintf("%s: %s (%s): %s\n\t%s", what, v.Rule, v.Impact, v.Help, strings.Join(v.Where, "\n\t"))
		if v.Impact == "serious" || v.Impact == "critical" {
			b.t.Error(line)
		} else {
			b.t.Log(line)
		}
	}
}

// stages are all pages of the console, each brought about in the tab.
func (w *world) stages(b *tab, each func(name string)) {
	b.open("/")
	b.sees("No Zoho account")
	each("empty")
	b.open("/connect")
	b.sees("Continue to Zoho")
	each("connect")
	b.press("Continue to Zoho")
	b.sees("Please look at this again")
	each("connect-faults")
	b.begin("Acme sales")
	each("zoho")
	b.accept(ada)
	b.sees("is connected")
	each("connected")
	b.begin("Northwind")
	b.accept(elif)
	b.sees("is connected")
	b.begin("Acme sales again")
	b.accept(ada)
	b.sees("connected already")
	each("duplicate")
	b.press("Cancel and give the access back")
	b.sees("Nothing was changed")
	b.begin("Globex support")
	b.accept(grace)
	b.sees("is connected")
	b.open("/connections/northwind")
	b.press("Test")
	b.sees("The connection works")
	each("tested")
	w.Zoho.RevokeRefreshToken(w.refresh("globex-support"))
	for i := range 12 {
		w.publish("globex-support", fmt.Sprint("job-", i))
	}
	for i := range 3 {
		w.publish("acme-sales", fmt.Sprint("job-", i))
	}
	b.open("/")
	b.sees("Revoked", "12 waiting")
	w.eventually("acme is answered", func() bool { return w.answered("acme-sales") == 3 })
	b.open("/")
	b.sees("Revoked", "s ago")
	each("connections")
	b.open("/connections/globex-support")
	b.sees("no longer accepts")
	each("revoked")
	b.open("/connections/globex-support/reauthorize")
	each("reauthorize")
	b.open("/connections/globex-support/disconnect")
	b.sees("12 wait right now")
	each("disconnect")
	b.open("/connections/nothing")
	b.sees("There is no such connection")
	each("fault")
	w.Zoho.SetOrgLatency(devbox.OrgID, 200*time.Millisecond, 200*time.Millisecond)
	for i := range 600 {
		w.publish("acme-sales", fmt.Sprint("load-", i))
	}
	b.open("/orgs")
	b.sees("Analytical Engines Ltd", "Running", "of 20", "acme-sales", "interactive", "used in 24 h")
	each("orgs")
	b.open("/connections/acme-sales")
	b.sees("Organisation’s limits", "heavy 0 of 10")
	each("flow")
	w.Zoho.SetOrgLatency(devbox.OrgID, 0, 0)
	b.open("/dead")
	b.sees("No dead letters")
	each("dead-none")
	for i := range 52 {
		w.bury("northwind", "invalid_request", "the body is no JSON: unexpected end of input", fmt.Sprintf(`{"id":"n-%d","method":"GET"`, i))
	}
	w.bury("acme-sales", "id_conflict", "the id was answered for a request with other content", `{"id":"invoice-2026-118","method":"POST","url":"/v8/Leads","body":{"data":[{"Last_Name":"Byron","Company":"Analytical Engines Ltd","Email":"a.byron@example.com"}]}}`)
	b.open("/dead")
	b.sees("Next page")
	each("dead-page")
	b.open("/dead?connection=acme-sales")
	b.sees("other content")
	each("dead")
	b.open("/dead/53")
	b.sees("invoice-2026-118")
	each("letter")
	b.open("/dead/drop?connection=northwind")
	b.sees("Drop 52 dead letters?")
	each("dead-drop")
	b.open("/dead/replay?number=53")
	b.sees("Replay dead letter 53?")
	each("dead-replay")
	b.open("/connect")
	b.fill("nickname", "Initech")
	b.press("Make a link to send instead")
	b.sees("A link to send")
	each("share")
	link := get(b, chromedp.Value(chromedp.CSS("#link")))
	b.open("/links")
	b.sees("Initech", "no sign-in begun yet")
	each("links")
	b.open(link)
	b.sees("Connect your Zoho account")
	each("link")
}

// No page has a serious finding, in light and dark, on a laptop and a phone, and
// none has to be scrolled sideways.
func TestAccessibility(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("node_modules/axe-core/axe.min.js")
	if err != nil {
		if os.Getenv("REQUIRE_CHROMIUM") == "1" {
			t.Fatalf("%v: run npm ci in test/browser", err)
		}
		t.Skipf("skipped, axe-core is not here: run npm ci in test/browser")
	}
	w := newWorld(t)
	b := w.tab()
	w.stages(b, func(name string) {
		for _, width := range []int64{1280, 360} {
			b.do(chromedp.EmulateViewport(width, 800))
			over := get(b, chromedp.Evaluate[int](`document.documentElement.scrollWidth - document.documentElement.clientWidth`))
			if over > 0 {
				t.Errorf("%s is %d pixels wider than %d", name, over, width)
			}
			for _, dark := range []bool{false, true} {
				b.dark(dark)
				b.axe(string(source), fmt.Sprintf("%s, %d pixels, dark %v", name, width, dark))
			}
		}
		b.dark(false)
		b.do(chromedp.EmulateViewport(1280, 800))
	})
}
