package console

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/consent"
	"zoho-worker/internal/token"
)

//go:embed templates/*.html
var templateFiles embed.FS

//go:embed static/*
var staticFiles embed.FS

// staticPath is where the files are that all pages share.
const staticPath = "/static/"

// pages are the parsed templates, one set per page.
type pages struct {
	sets  map[string]*template.Template
	files map[string]staticFile
}

type staticFile struct {
	data []byte
	kind string
	etag string
}

func parsePages() (*pages, error) {
	p := &pages{sets: map[string]*template.Template{}, files: map[string]staticFile{}}
	err := fs.WalkDir(staticFiles, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := staticFiles.ReadFile(name)
		if err != nil {
			return err
		}
		kind := map[string]string{".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}[path.Ext(name)]
		sum := sha256.Sum256(data)
		p.files[path.Base(name)] = staticFile{data: data, kind: kind, etag: hex.EncodeToString(sum[:6])}
		return nil
	})
	if err != nil {
		return nil, err
	}
	funcs := template.FuncMap{
		"asset": func(name string) string { return staticPath + name + "?v=" + p.files[name].etag },
		"place": consent.PlaceName,
		"title": func(s string) string {
			if s == "" {
				return s
			}
			return strings.ToUpper(s[:1]) + s[1:]
		},
		"day": func(t time.Time) string { return t.UTC().Format("2 Jan 2006, 15:04 UTC") },
		// moment tells apart what happened within a minute.
		"moment": func(t time.Time) string { return t.UTC().Format("2 Jan 2006, 15:04:05 UTC") },
		"iso":    func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
		"join":   strings.Join,
		"list":   func(items ...any) []any { return items },
	}
	names, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		base := strings.TrimSuffix(path.Base(name), ".html")
		if base == "layout" || base == "rows" {
			continue
		}
		set, err := template.New(base).Funcs(funcs).ParseFS(templateFiles, "templates/layout.html", "templates/rows.html", name)
		if err != nil {
			return nil, fmt.Errorf("console: %w", err)
		}
		p.sets[base] = set
	}
	return p, nil
}

// page is what every template gets.
type page struct {
	Title   string
	Nav     string // the current place: connections, connect, orgs, dead
	Person  string
	SignOut bool
	Open    bool // a page for people who don't see the console
	Live    bool // asked for by the page itself, which looks for changes
	Form    string
	Leave   string // where the page leads by itself
	Flash   *flash
	Way     *way // out of a fault
	Version string
	Data    any
}

// render writes a page, whole or not at all.
func (c *Console) render(w http.ResponseWriter, r *http.Request, status int, name string, p page) {
	p.Version, p.SignOut = c.Version, c.Auth.signOut()
	if p.Person = person(r); p.Person == "" {
		p.Open = true
	}
	if status == http.StatusOK && !p.Live {
		p.Flash = cmp.Or(p.Flash, c.takeFlash(w, r))
	}
	if p.Form == "" && name != "fault" || p.SignOut && !p.Open {
		p.Form = c.formToken(w, r)
	}
	var body bytes.Buffer
	if err := c.pages.sets[name].ExecuteTemplate(&body, "layout", p); err != nil {
		c.Logger.Error("console page", "page", name, "err", err)
		http.Error(w, "this page could not be made", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	// A long list is the same words over and over, every two seconds. Other pages can repeat
	// what they were asked for: compressed, their size would tell what else is on them.
	if !p.Live || !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.WriteHeader(status)
		_, _ = body.WriteTo(w)
		return
	}
	h.Set("Content-Encoding", "gzip")
	w.WriteHeader(status)
	small, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // fails for a level that there isn't
	_, _ = body.WriteTo(small)
	_ = small.Close()
}

// way is where a page leads on to.
type way struct{ Href, Text string }

// home leads to the console, and so to its sign-in.
func (c *Console) home(text string) way { return way{c.PublicURL + "/", text} }

// again leads to the page that was asked for.
func again(r *http.Request, text string) way { return way{local(r.URL.RequestURI()), text} }

// from leads back to the page that a form was on.
func (c *Console) from(r *http.Request, text string) way {
	page, err := url.Parse(r.Referer())
	if err != nil || page.Host == "" || page.Host != r.Host {
		return c.home(text)
	}
	return way{local(page.RequestURI()), text}
}

// local is an address of this host's; one that a browser would take for another
// host's is the first page.
func local(to string) string {
	if !strings.HasPrefix(to, "/") || strings.HasPrefix(to, "//") || strings.HasPrefix(to, "/\\") {
		return "/"
	}
	return to
}

// fail is the end of a way that did not work out, and where to go on from there.
func (c *Console) fail(w http.ResponseWriter, r *http.Request, status int, fault *consent.Fault, to ...way) {
	if fault.Err != nil {
		log := c.Logger.Info
		if status >= 500 {
			log = c.Logger.Error
		}
		log("console: a consent or a change was refused", "code", fault.Code, "path", routeOf(r), "err", fault.Err)
	}
	p := page{Title: fault.Title, Data: fault}
	if len(to) > 0 {
		p.Way = &to[0]
	}
	c.render(w, r, status, "fault", p)
}

// routeOf is the request's pattern: paths can hold one-time words.
func routeOf(r *http.Request) string {
	if r.Pattern != "" {
		return r.Pattern
	}
	return r.Method
}

func (c *Console) static(w http.ResponseWriter, r *http.Request) {
	file, ok := c.pages.files[r.PathValue("file")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", file.kind)
	if r.URL.Query().Get("v") == file.etag {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	} else {
		h.Set("Cache-Control", "no-cache")
	}
	h.Set("Content-Length", strconv.Itoa(len(file.data)))
	_, _ = w.Write(file.data)
}

func statusText(status int) string {
	return strings.TrimSpace(strconv.Itoa(status) + " " + http.StatusText(status))
}

// row is a connection as the pages show it.
type row struct {
	*connection.Connection
	State     string // ok, wait, bad: with a sign and a word, never a colour alone
	Word      string
	Why       string
	Token     string
	LastUsed  string
	LastError string
	Waiting   int
	InFlight  int  // of the org
	Places    int  // of the org
	Known     bool // the queue is known
	Paused    string
	Scopes    []string
}

// Label is what people call the connection.
func (r row) Label() string { return cmp.Or(r.Nickname, r.Name) }

// SignIn says that signing in again puts the connection right.
func (r row) SignIn() bool { return r.Word == "Revoked" || r.Word == "Locked" }

// rank puts what needs a person first.
func (r row) rank() int {
	if r.State == "bad" {
		return 0
	}
	return 1
}

// limit takes in the limits of the org's connections.
func (r *row) limit(members map[string][]*connection.Connection) {
	if places := placesOf(members[r.Queue()]); places > 0 {
		r.Places = min(r.Places, places)
	}
}

// Who is the Zoho user: the name in "Ada Lovelace <ada@example.com>".
func (r row) Who() string {
	name, _, _ := strings.Cut(r.UserName, " <")
	return cmp.Or(name, r.UserID, "user not known")
}

// Email is the Zoho user's address, empty where it is not known.
func (r row) Email() string {
	_, address, _ := strings.Cut(r.UserName, " <")
	return strings.TrimSuffix(address, ">")
}

// Org is the Zoho organisation.
func (r row) Org() string { return cmp.Or(r.OrgName, r.OrgID, "org not known") }

func (c *Console) row(conn *connection.Connection, queue queueState, known bool, last use) row {
	now := c.Now()
	r := row{
		Connection: conn, Waiting: queue.Waiting, InFlight: queue.InFlight, Places: conn.Places(), Known: known, LastError: last.Fault,
	}
	if queue.Places > 0 {
		r.Places = min(r.Places, queue.Places)
	}
	view := c.Tokens.Look(conn.Name)
	switch {
	case conn.Status == connection.Unreadable:
		r.State, r.Word, r.Why = "bad", "Unreadable", faultText(conn.Err())
	case conn.Err() != nil:
		r.State, r.Word, r.Why = "bad", "Locked", faultText(conn.Err())
	case conn.Status == connection.Revoked:
		r.State, r.Word, r.Why = "bad", "Revoked", cmp.Or(conn.StatusReason, "Zoho no longer accepts it")
	case view.Grant == conn.Grant && now.Before(view.BlockedUntil) && view.Reason == token.Misconfigured:
		r.State, r.Word, r.Why = "bad", "Misconfigured", "Zoho does not accept the client id or secret"
	case view.Grant == conn.Grant && now.Before(view.BlockedUntil):
		r.State, r.Word, r.Why = "wait", "Waiting", reasonText(view.Reason)+", again in "+span(view.BlockedUntil.Sub(now))
	default:
		r.State, r.Word = "ok", "Connected"
	}
	switch {
	case view.Grant != conn.Grant || view.MintedAt.IsZero():
		r.Token = "no token yet"
	case now.After(view.ExpiresAt):
		r.Token = "token ended " + span(now.Sub(view.ExpiresAt)) + " ago"
	default:
		r.Token = "token " + span(now.Sub(view.MintedAt)) + " old, " + span(view.ExpiresAt.Sub(now)) + " left"
	}
	r.LastUsed = "not known now"
	if last.known {
		r.LastUsed = "never"
	}
	used := last.At
	if view.UsedAt.After(used) {
		used = view.UsedAt
	}
	// What was handed to a worker was sent only where there was a token.
	if last.Delivered.After(used) && !view.MintedAt.IsZero() {
		used = last.Delivered
	}
	if !used.IsZero() {
		r.LastUsed = span(now.Sub(used)) + " ago"
	}
	if now.Before(queue.PausedUntil) {
		r.Paused = span(queue.PausedUntil.Sub(now))
	}
	return r
}

// faultText is an error of a record in a line: they hold no secret.
func faultText(err error) string { return strings.ReplaceAll(clip(err.Error()), "\n", " ") }

func reasonText(reason token.Reason) string {
	switch reason {
	case token.Throttled:
		return "Zoho asks for a pause between token requests"
	case token.Budget:
		return "as many tokens were made as Zoho allows"
	case token.AccountsUnavailable:
		return "Zoho's accounts server does not answer"
	}
	return "no token now"
}

// span is a duration for people: one unit.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(max(d, 0).Seconds())) + " s"
	case d < time.Hour:
		return strconv.Itoa(int(d.Minutes())) + " min"
	case d < 48*time.Hour:
		return strconv.Itoa(int(d.Hours())) + " h"
	}
	return strconv.Itoa(int(d.Hours()/24)) + " days"
}
