package console

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"time"

	"zoho-worker/internal/consent"
)

const (
	// maxForm bounds the body of a POST.
	maxForm = 64 << 10
	// pageTime bounds a page, from when it is asked for until the browser has it. The
	// longest are consents: Zoho gets a minute, and half of one more to take a grant back.
	pageTime = 2 * time.Minute
)

// guard is what every request passes: headers, the host, the origin.
func (c *Console) guard(next http.Handler) http.Handler {
	origins := http.NewCrossOriginProtection()
	origins.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.fail(w, r, http.StatusForbidden, &consent.Fault{
			Code: consent.Invalid, Title: "This came from another site", Text: "The console takes changes from its own pages only. Nothing was changed.",
			Todo: "Open the console itself and do it there.",
		}, c.home("Open the console"))
	}))
	checked := origins.Handler(next)
	policy := strings.Join([]string{
		"default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'",
		"form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'",
	}, "; ")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Frame-Options", "DENY")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=(), payment=()")
		h.Set("X-Robots-Tag", "noindex")
		h.Set("Cache-Control", "no-store")
		if c.secure {
			h.Set("Strict-Transport-Security", "max-age=31536000")
		}
		if !c.ours(r.Host) && !strings.HasPrefix(r.URL.Path, staticPath) {
			// Another name for this address may belong to somebody who wants the
			// browser to take his pages for ours. What this one is drawn with is no secret.
			c.fail(w, r, http.StatusMisdirectedRequest, &consent.Fault{
				Code: consent.Invalid, Title: "The console has another address", Text: "It answers at " + c.PublicURL + " only (--public-url).",
				Todo: "Open it there.",
			}, c.home("Open the console"))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxForm)
		// The server's own time for an answer is shorter than Zoho may take for one.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(pageTime))
		checked.ServeHTTP(w, r)
	})
}

func (c *Console) ours(host string) bool {
	normal := func(host string) string {
		port := ":80"
		if c.secure {
			port = ":443"
		}
		return strings.TrimSuffix(strings.ToLower(host), port)
	}
	return normal(host) == normal(c.public.Host)
}

// private lets signed-in people through, and checks the token of a form.
func (c *Console) private(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		person, ok := c.Auth.person(w, r, c)
		if !ok {
			return // it has answered
		}
		r = r.WithContext(context.WithValue(r.Context(), personKey{}, person))
		if r.Method != http.MethodGet && r.Method != http.MethodHead && !c.formOK(w, r) {
			return
		}
		next(w, r)
	})
}

type personKey struct{}

// person is who is signed in, for records and logs.
func person(r *http.Request) string {
	name, _ := r.Context().Value(personKey{}).(string)
	return name
}

// A sealed cookie can only be read and made by workers with the encryption
// keys, and ends by itself.
type sealedCookie struct {
	Value   json.RawMessage `json:"v"`
	Expires time.Time       `json:"e"`
}

// cookieName has the prefix by which browsers refuse it from anything but this
// very host by https.
func (c *Console) cookieName(name string) string {
	if c.secure {
		return "__Host-zoho-" + name
	}
	return "zoho-" + name
}

func (c *Console) setCookie(w http.ResponseWriter, name string, value any, life time.Duration) {
	inner, err := json.Marshal(value)
	if err != nil {
		panic(err) // values are of this package
	}
	plain, _ := json.Marshal(sealedCookie{Value: inner, Expires: c.Now().Add(life)})
	sealed := base64.RawURLEncoding.EncodeToString(c.Keyring.Seal(plain, "console-cookie", name))
	// Lax, so that it is there when Zoho sends the browser back.
	http.SetCookie(w, &http.Cookie{
		Name: c.cookieName(name), Value: sealed, Path: "/", MaxAge: int(life.Seconds()),
		HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteLaxMode,
	})
}

func (c *Console) cookie(r *http.Request, name string, into any) bool {
	cookie, err := r.Cookie(c.cookieName(name))
	if err != nil {
		return false
	}
	return c.open(cookie.Value, "console-cookie", name, into)
}

func (c *Console) open(text, purpose, name string, into any) bool {
	sealed, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return false
	}
	plain, err := c.Keyring.Open(sealed, purpose, name)
	if err != nil {
		return false
	}
	var value sealedCookie
	return json.Unmarshal(plain, &value) == nil && c.Now().Before(value.Expires) && json.Unmarshal(value.Value, into) == nil
}

func (c *Console) dropCookie(w http.ResponseWriter, name string) {
	http.SetCookie(w, &http.Cookie{
		Name: c.cookieName(name), Path: "/", MaxAge: -1, HttpOnly: true, Secure: c.secure, SameSite: http.SameSiteLaxMode,
	})
}

const (
	// formLife is how long a page with a form may stay open.
	formLife = 12 * time.Hour
	// browserLife is how long a browser is known again after the last form that it got:
	// tabs that it opens at once, as after a night, would each get it another name, and
	// the forms of all but the last would be no good.
	browserLife = 30 * 24 * time.Hour
)

// formToken returns the token that this browser's forms carry: worth nothing in
// another browser.
func (c *Console) formToken(w http.ResponseWriter, r *http.Request) string {
	var browser string
	if !c.cookie(r, "browser", &browser) {
		b := make([]byte, 18)
		_, _ = rand.Read(b) // never fails
		browser = base64.RawURLEncoding.EncodeToString(b)
	}
	c.setCookie(w, "browser", browser, browserLife) // once more: it outlives the form
	inner, _ := json.Marshal(browser)
	plain, _ := json.Marshal(sealedCookie{Value: inner, Expires: c.Now().Add(formLife)})
	return base64.RawURLEncoding.EncodeToString(c.Keyring.Seal(plain, "console-form", "browser"))
}

// formOK checks the token of a POST, and answers where it is not good.
func (c *Console) formOK(w http.ResponseWriter, r *http.Request) bool {
	var browser, carried string
	if err := r.ParseForm(); err == nil &&
		c.cookie(r, "browser", &browser) && c.open(r.PostForm.Get("form"), "console-form", "browser", &carried) &&
		subtle.ConstantTimeCompare([]byte(browser), []byte(carried)) == 1 {
		return true
	}
	c.fail(w, r, http.StatusForbidden, &consent.Fault{
		Code: consent.Invalid, Title: "This form is no longer good", Text: "It was open for too long, or this browser takes no cookies. Nothing was changed.",
		Todo: "Load the page again, and send it once more.",
	}, c.from(r, "Load the page again"))
	return false
}

// stateCookie is the name of the cookie that binds a state to this browser; each
// consent or sign-in under way has one of its own.
func stateCookie(kind, state string) string {
	if len(state) < 16 {
		return kind + "-none"
	}
	return kind + "-" + state[:10]
}

// consentCookie is that of a consent.
func consentCookie(state string) string { return stateCookie("state", state) }

// bind remembers in the browser that it set out with the state.
func (c *Console) bind(w http.ResponseWriter, state string) {
	c.setCookie(w, consentCookie(state), state, stateLife)
}

// stateLife is that of a consent, and of the decision that may follow.
const stateLife = 30 * time.Minute

// bound returns the state if this browser set out with it, "" otherwise.
func (c *Console) bound(r *http.Request, state string) string {
	var carried string
	if !c.cookie(r, consentCookie(state), &carried) {
		return ""
	}
	return carried
}

// flash is what the next page says once.
type flash struct {
	Kind    string `json:"kind"` // good or bad
	Title   string `json:"title"`
	Text    string `json:"text,omitempty"`
	Warning string `json:"warning,omitempty"`
}

func (c *Console) setFlash(w http.ResponseWriter, f flash) {
	c.setCookie(w, "flash", f, 5*time.Minute)
}

func (c *Console) takeFlash(w http.ResponseWriter, r *http.Request) *flash {
	var f flash
	if !c.cookie(r, "flash", &f) {
		return nil
	}
	c.dropCookie(w, "flash")
	return &f
}

// clientIP is who is at the other end of the connection.
func clientIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
