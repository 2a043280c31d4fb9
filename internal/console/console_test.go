package console

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"pgregory.net/rapid"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/flow"
	"zoho-worker/internal/secret"
)

func TestNameOf(t *testing.T) {
	t.Parallel()
	for nickname, want := range map[string]string{
		"Acme Sales (EMEA)": "acme-sales-emea", "  Ünïcode & Söhne ": "n-code-s-hne", "7-Eleven": "7-eleven", "---": "", "日本": "",
	} {
		if got := nameOf(nickname); got != want {
			t.Errorf("%q: %q, want %q", nickname, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		if name := nameOf(rapid.String().Draw(t, "nickname")); name != "" && !envelope.ValidConnection(name) {
			t.Fatalf("%q is no name", name)
		}
	})
}

// A name that somebody chose has no character by which it could have a terminal or a
// log line do something.
func TestClip(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"Ada": "Ada", "Ünï\u200dcode": "Ünï\u200dcode", "a\x1b[2Jb\nc\x7f": "a[2Jbc", "a\u009b2J\u0085b": "a2Jb", strings.Repeat("x", 151): strings.Repeat("x", 150),
	} {
		if got := clip(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 59 * time.Second: "59 s", time.Minute: "1 min", 90 * time.Minute: "1 h", 47 * time.Hour: "47 h", 72 * time.Hour: "3 days",
	} {
		if got := span(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

func TestNewBasic(t *testing.T) {
	t.Parallel()
	good, _ := bcrypt.GenerateFromPassword([]byte("x"), 10)
	weak, _ := bcrypt.GenerateFromPassword([]byte("x"), 4)
	if _, err := NewBasic("a:" + string(good) + ",b:" + string(good)); err != nil {
		t.Error(err)
	}
	for _, wrong := range []string{"", "a", "a:plain", ":" + string(good), "a:" + string(weak)} {
		if _, err := NewBasic(wrong); err == nil {
			t.Errorf("%q is taken", wrong)
		}
	}
	if _, err := NewBasic("a:" + string(weak)); err == nil || !strings.Contains(err.Error(), "htpasswd -nB -C 12") {
		t.Errorf("a cost that is too low: %v doesn't say how to make a better one", err)
	}
}

// Who is allowed is a list with commas, and people write spaces after those.
func TestAllowedWithSpaces(t *testing.T) {
	t.Parallel()
	o, err := NewOIDC(OIDCConfig{
		Issuer: "https://id.example.com", ClientID: "a", ClientSecret: secret.New("b"), Allowed: []string{"ada@example.com", " Bob@example.com", "\t@example.org "},
	})
	if err != nil {
		t.Fatal(err)
	}
	for email, want := range map[string]bool{
		"ada@example.com": true, "bob@example.com": true, "eve@example.org": true, "eve@example.com": false,
	} {
		if got := o.allowed(email); got != want {
			t.Errorf("%q: %v", email, got)
		}
	}
}

// The client secret goes to the issuer: by https, or to this machine.
func TestIssuer(t *testing.T) {
	t.Parallel()
	for issuer, want := range map[string]bool{
		"https://id.example.com": true, "https://id.example.com/realms/a": true, "http://127.0.0.1:5556": true, "http://[::1]:5556/dex": true,
		"http://id.example.com": false, "http://127.0.0.1.id.example.com": false, "http://127.0.0.1@id.example.com": false, "https://": false, "": false,
	} {
		_, err := NewOIDC(OIDCConfig{Issuer: issuer, ClientID: "a", ClientSecret: secret.New("b"), Allowed: []string{"@example.com"}})
		if (err == nil) != want {
			t.Errorf("%q: %v", issuer, err)
		}
	}
}

func TestLoopback(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]bool{
		"127.0.0.1:8080": true, "[::1]:8080": true, "localhost:80": true, "127.9.9.9:1": true,
		":8080": false, "0.0.0.0:8080": false, "[::]:1": false, "10.0.0.1:1": false, "localhost.evil.example:1": false, "": false,
	} {
		if got := Loopback(addr); got != want {
			t.Errorf("%q: %v", addr, got)
		}
	}
}

// A pace is told as one, not as a count of what was used.
func TestCreditsText(t *testing.T) {
	t.Parallel()
	got := creditsText(&flow.Forecast{Used: 36, PerHour: 43}, time.Now())
	if want := []string{"36 used in 24 h, about 43 an hour"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// What a browser fetches every two seconds is small, and the same as the page; a page that
// somebody opened is not compressed.
func TestLiveListIsSmall(t *testing.T) {
	t.Parallel()
	c := newPages(t)
	var data listData
	for i := range 200 {
		data.Rows = append(data.Rows, row{State: "ok", Word: "Connected", Known: true, Connection: &connection.Connection{
			Name: fmt.Sprintf("customer-%d", i), Location: "eu", Environment: "production", OrgID: fmt.Sprint(20078233816 + i),
		}})
	}
	fetch := func(path, accepted string) *httptest.ResponseRecorder {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1"+path, nil)
		r.Header.Set("Accept-Encoding", accepted)
		w := httptest.NewRecorder()
		c.render(w, r, http.StatusOK, "list", page{Live: live(r), Data: data})
		return w
	}
	const browser = "gzip, deflate, br, zstd"
	whole := fetch("/", browser)
	if got := whole.Header().Get("Content-Encoding"); got != "" {
		t.Errorf("a page that was opened is %s", got)
	}
	if got := fetch("/?rows", ""); got.Body.String() != whole.Body.String() || got.Header().Get("Content-Encoding") != "" {
		t.Errorf("to who takes nothing compressed: %d bytes, %q", got.Body.Len(), got.Header().Get("Content-Encoding"))
	}
	packed := fetch("/?rows", browser)
	if packed.Body.Len()*10 > whole.Body.Len() {
		t.Errorf("%d bytes of %d every two seconds", packed.Body.Len(), whole.Body.Len())
	}
	unpacked, err := gzip.NewReader(packed.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(unpacked); err != nil || string(got) != whole.Body.String() {
		t.Errorf("%d bytes, unpacked: %v", len(got), err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/connect?rows&nickname=guess", nil)
	r.Header.Set("Accept-Encoding", browser)
	form := httptest.NewRecorder()
	c.Handler().ServeHTTP(form, r)
	if got := form.Header().Get("Content-Encoding"); got != "" || !strings.Contains(form.Body.String(), "guess") {
		t.Errorf("a page that repeats what was asked is %q: %d", got, form.Code)
	}
}

// A dead letter's JSON is shown as json.Indent makes it, whatever it is; but one of
// many deep arrays, whose lines would be a thousand times as large, only as far as a
// page goes.
func TestReadable(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.Custom(func(t *rapid.T) any { return anything(t, 3) }).Draw(t, "value")
		data, err := json.MarshalIndent(value, "", rapid.SampledFrom([]string{"", "   "}).Draw(t, "indent"))
		if err != nil {
			t.Fatal(err)
		}
		var want bytes.Buffer
		_ = json.Indent(&want, data, "", "  ")
		if got, kind := readable(data); got != want.String() || kind != "json" {
			t.Fatalf("%s: %s, want %s", kind, got, want.Bytes())
		}
	})
	deep := strings.Repeat("[", 2000) + strings.Repeat("]", 2000)
	data := []byte("[" + strings.Repeat(deep+",", 20) + deep + "]")
	if got, kind := readable(data); len(got) <= mostShown || len(got) > 2*mostShown || kind != "json" {
		t.Errorf("%d bytes are %d bytes of %s", len(data), len(got), kind)
	}
}

// anything is a JSON value.
func anything(t *rapid.T, depth int) any {
	switch kind := rapid.IntRange(0, 5).Draw(t, "kind"); {
	case kind == 0 && depth > 0:
		return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) any { return anything(t, depth-1) }), 0, 3).Draw(t, "array")
	case kind == 1 && depth > 0:
		return rapid.MapOfN(rapid.String(), rapid.Custom(func(t *rapid.T) any { return anything(t, depth-1) }), 0, 3).Draw(t, "object")
	case kind == 2:
		return rapid.Float64().Draw(t, "number")
	case kind == 3:
		return rapid.SampledFrom([]any{nil, true, false}).Draw(t, "word")
	}
	return rapid.StringOf(rapid.SampledFrom([]rune(`a"\\{}[],: é`))).Draw(t, "text")
}
