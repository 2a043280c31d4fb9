package console

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/crypto/bcrypt"

	"zoho-worker/internal/consent"
	"zoho-worker/internal/secret"
)

// Whoever has just signed in is known again by name and password, each for itself:
// "12" and "longusername" is not "1" and "2longusername".
func TestBasicKnowsNamesApart(t *testing.T) {
	t.Parallel()
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), 10)
	if err != nil {
		t.Fatal(err)
	}
	auth, err := NewBasic("longusername:" + string(hash))
	if err != nil {
		t.Fatal(err)
	}
	keyring, err := secret.ParseKeyring(secret.Generate().Reveal())
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(Options{Keyring: keyring, PublicURL: "http://127.0.0.1", Auth: auth, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	pages := c.Handler()
	status := func(name, password string) int {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/connect", nil)
		r.SetBasicAuth(name, password)
		w := httptest.NewRecorder()
		pages.ServeHTTP(w, r)
		return w.Code
	}
	for _, attempt := range []struct {
		name, password string
		want           int
	}{{"longusername", "right", 200}, {"longusername", "right", 200}, {"2", "longusernameright", 401}, {"longusername", "wrong", 401}} {
		if got := status(attempt.name, attempt.password); got != attempt.want {
			t.Errorf("%s: %d, want %d", attempt.name, got, attempt.want)
		}
	}
}

// Names can't be told by how long a refusal takes: an unknown one costs what a known
// one does, and nobody gets in by it, not even with the right password of another.
func TestBasicTellsNoNames(t *testing.T) {
	t.Parallel()
	users := ""
	for i, cost := range []int{10, 11, 10} {
		hash, err := bcrypt.GenerateFromPassword([]byte("right"), cost)
		if err != nil {
			t.Fatal(err)
		}
		users += fmt.Sprintf("user%d:%s,", i, hash)
	}
	auth, err := NewBasic(users)
	if err != nil {
		t.Fatal(err)
	}
	hash, there := auth.hash("nobody")
	if cost, err := bcrypt.Cost(hash); err != nil || cost != 11 || there {
		t.Errorf("cost %d, %v; there: %v", cost, err, there)
	}
	if hash, there := auth.hash("user2"); !there || string(hash) != string(auth.users["user2"]) {
		t.Error("a user is compared with the hash of another")
	}
	c, err := New(Options{PublicURL: "http://127.0.0.1", Auth: auth, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/connect", nil)
	r.SetBasicAuth("nobody", "right")
	w := httptest.NewRecorder()
	if _, in := auth.person(w, r, c); in || w.Code != http.StatusUnauthorized {
		t.Errorf("an unknown name with somebody's password: in %v, status %d", in, w.Code)
	}
}

// Wrong passwords are counted until a right one comes, and no longer for who is known;
// what bcrypt leaves out of a long one is not left out here.
func TestGuessesAreCounted(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 72)
	auth, err := NewBasic("ada:$2y$10$" + strings.Repeat("x", 53))
	if err != nil {
		t.Fatal(err)
	}
	for name, password := range map[string]string{"ada": "right", "grace": long} {
		if auth.users[name], err = bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost); err != nil { // which is quick
			t.Fatal(err)
		}
	}
	now := time.Now()
	pages := newPages(t, func(o *Options) { o.Auth, o.Now = auth, func() time.Time { return now } }).Handler()
	for i, guess := range []struct {
		times          int
		name, password string
		want           int
	}{
		{failBurst - 1, "ada", "wrong", 401},
		{1, "ada", "right", 200},
		{failBurst - 1, "ada", "wrong", 401},
		{1, "grace", long + "y", 401},
		{1, "ada", "wrong", 429},
		{1, "grace", long, 429},
		{1, "ada", "right", 200}, // known
	} {
		for range guess.times {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/connect", nil)
			r.SetBasicAuth(guess.name, guess.password)
			w := httptest.NewRecorder()
			if pages.ServeHTTP(w, r); w.Code != guess.want {
				t.Fatalf("step %d, %s: %d, want %d", i, guess.name, w.Code, guess.want)
			}
		}
	}
}

// Who has a network of IPv6 addresses has no more guesses than who has one address.
func TestGuessesOfANetwork(t *testing.T) {
	t.Parallel()
	for of, same := range map[[2]string]bool{
		{"2001:db8::1", "2001:db8::ffff:1"}: true, {"2001:db8::1", "2001:db8:0:1::1"}: false, {"192.0.2.1", "192.0.2.2"}: false,
		{"::ffff:192.0.2.1", "192.0.2.1"}: true, {"::ffff:192.0.2.1", "::ffff:192.0.2.2"}: false, {"fe80::1%eth0", "fe80::2%eth1"}: true,
		{"@", "@"}: true, // a socket without an address
	} {
		if got := guesser(of[0]) == guesser(of[1]); got != same {
			t.Errorf("%v: the same is %v", of, got)
		}
	}
}

// unasked fails whoever asks JetStream for a stream.
type unasked struct {
	jetstream.JetStream
	t *testing.T
}

func (u unasked) Stream(context.Context, string) (jetstream.Stream, error) {
	u.t.Error("JetStream is asked")
	return nil, jetstream.ErrStreamNotFound
}

// A stranger's browser, which has no consent under way, keeps no storage busy.
func TestNoConsentAsksNobody(t *testing.T) {
	t.Parallel()
	keyring, err := secret.ParseKeyring(secret.Generate().Reveal())
	if err != nil {
		t.Fatal(err)
	}
	js := unasked{t: t}
	c, err := New(Options{
		Keyring: keyring, PublicURL: "http://127.0.0.1", Logger: slog.New(slog.DiscardHandler), JS: js,
		Consents: consent.New(consent.Options{JS: js, Keyring: keyring, Logger: slog.New(slog.DiscardHandler)}),
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"/oauth/decide", "/oauth/decide?consent=state-AAAAAAAAAA", "/oauth/callback", "/oauth/callback?state=x&code=y"} {
		w := httptest.NewRecorder()
		c.Handler().ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1"+page, nil))
		if w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", page, w.Code)
		}
	}
}

// A provider that does not answer keeps nobody waiting but the first: the others are told
// what it said, and it is asked again after a pause.
func TestProviderIsLeftAlone(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer provider.Close()
	auth, err := NewOIDC(OIDCConfig{Issuer: provider.URL, ClientID: "console", ClientSecret: secret.New("s"), Allowed: []string{"@example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	pages := newPages(t, func(o *Options) { o.Auth, o.Now = auth, func() time.Time { return now } }).Handler()
	open := func() {
		w := httptest.NewRecorder()
		pages.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/", nil))
		if w.Code != http.StatusBadGateway {
			t.Errorf("status %d", w.Code)
		}
	}
	for range 5 {
		open()
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("five pages asked it %d times", n)
	}
	now = now.Add(providerPause)
	open()
	if n := asked.Load(); n != 2 {
		t.Errorf("after the pause it has been asked %d times", n)
	}
}
