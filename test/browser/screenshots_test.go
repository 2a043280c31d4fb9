package browser

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/chromedp/chromedp"
)

// TestScreenshots writes the pictures of the documentation.
func TestScreenshots(t *testing.T) {
	if os.Getenv("UPDATE_SCREENSHOTS") != "1" {
		t.Skip("skipped: UPDATE_SCREENSHOTS=1 writes docs/images")
	}
	t.Parallel()
	only := []string{
		"connections", "connections-dark", "connections-phone", "connect", "connect-phone", "duplicate",
		"revoked", "revoked-dark", "revoked-phone", "tested", "link-phone", "share", "zoho",
		"letter", "orgs",
	}
	dir := filepath.Join(root(), "docs", "images")
	if os.Getenv("SCREENSHOTS_ALL") != "" { // to look at all of them
		only, dir = nil, os.Getenv("SCREENSHOTS_ALL")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	b := w.tab()
	shoot := func(name string, width, height int64, scale float64, dark bool) {
		if only != nil && !slices.Contains(only, name) {
			return
		}
		b.do(chromedp.EmulateViewport(width, height, chromedp.EmulateScale(scale)))
		b.dark(dark)
		b.do(chromedp.Evaluate[chromedp.Void](`document.activeElement?.blur(); scrollTo(0, 0)`))
		picture := get(b, chromedp.FullScreenshot(100))
		if err := os.WriteFile(filepath.Join(dir, "console-"+name+".png"), picture, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.stages(b, func(name string) {
		shoot(name, 1200, 640, 1, false)
		shoot(name+"-dark", 1200, 640, 1, true)
		shoot(name+"-phone", 360, 720, 1.5, false)
		b.dark(false)
		b.do(chromedp.EmulateViewport(1280, 800))
	})
}
