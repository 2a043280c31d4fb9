package zohotest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"
)

// exchange is one call under way. Only its own goroutine touches it; the ledger
// holds a copy of call.
type exchange struct {
	s     *Server
	w     http.ResponseWriter
	r     *http.Request
	call  Call
	entry *Call // the ledger's copy, guarded by the ledger
	body  []byte
	fault *Fault

	access   *access // API: the token used, dead or alive
	user     *User
	org      *org
	form     map[string]string // accounts: the parameters
	grant    *grant            // token endpoint: whose refresh token it is
	refused  *result           // decided before execution: 401, 413, 429
	version  int
	heavies  int       // counted as sub-concurrent
	counted  bool      // counted as in flight
	places   int       // that it counts for then
	working  bool      // counted as in flight and not refused
	order    *sequence // in flight in it
	finished bool
}

// read takes the whole body in; false when the client didn't send it whole.
func (x *exchange) read() bool {
	if x.r.Body == nil || x.r.Body == http.NoBody {
		x.call.BodySHA256 = emptyDigest
		return true
	}
	if x.r.ContentLength > x.s.opt.MaxBody {
		x.refused = tooLarge()
		return true
	}
	body, err := readBody(x.r, x.s.opt.MaxBody)
	x.body = body
	x.call.BodyBytes = int64(len(body))
	if err != nil {
		x.call.Err = err.Error()
		return false
	}
	if int64(len(body)) > x.s.opt.MaxBody {
		x.body, x.refused = nil, tooLarge()
		return true
	}
	if x.s.opt.CountOnly {
		return true
	}
	sum := sha256.Sum256(body)
	x.call.BodySHA256 = hex.EncodeToString(sum[:])
	if x.call.Endpoint == API {
		if keep := min(len(body), max(x.s.opt.KeepBodies, 0)); keep > 0 {
			x.call.Body = body[:keep:keep]
		}
	}
	return true
}

// readBody reads one byte more than limit, so that a longer body is noticed.
func readBody(r *http.Request, limit int64) ([]byte, error) {
	if n := r.ContentLength; n > 0 && n <= limit {
		body := make([]byte, n)
		k, err := io.ReadFull(r.Body, body)
		return body[:k], err
	}
	var buf bytes.Buffer
	_, err := buf.ReadFrom(io.LimitReader(r.Body, limit+1))
	return buf.Bytes(), err
}

var emptyDigest = func() string {
	sum := sha256.Sum256(nil)
	return hex.EncodeToString(sum[:])
}()

// answer executes the call as far as its fault lets it, and sends what there is to send.
func (x *exchange) answer() {
	if x.closed() { // perhaps while this call was held
		x.cut(Close)
	}
	f := x.fault
	if f == nil {
		x.send(x.execute())
		return
	}
	if !x.s.pause(f.Before) {
		x.cut(Close)
	}
	res := &result{}
	if f.executes() {
		res = x.execute()
	}
	if f.Answer != nil {
		res = &result{Answer: *f.Answer}
	}
	if f.Edit != nil {
		if res.Header = res.Header.Clone(); res.Header == nil {
			res.Header = http.Header{}
		}
		f.Edit(&res.Answer)
	}
	if !x.s.pause(f.Wait) {
		x.cut(Close)
	}
	if f.Cut != NoCut {
		x.cut(f.Cut)
	}
	x.send(res)
}

// answerUnread carries out a fault that comes before the body is read.
func (x *exchange) answerUnread() {
	f := x.fault
	if !x.s.pause(f.Before+f.Wait) || f.Answer == nil || f.Cut != NoCut {
		x.cut(max(f.Cut, Close))
	}
	x.send(&result{Answer: *f.Answer})
}

// execute does what the call asks for and puts it in the ledger.
func (x *exchange) execute() *result {
	var res *result
	switch {
	case x.refused != nil:
		res = x.refused
	case x.call.Endpoint == API:
		res = x.s.api(x)
	default:
		res = x.s.accounts(x)
	}
	x.call.Code, x.call.Applied, x.call.RecordIDs = res.code, res.applied, res.ids
	x.s.ledger.executed(x)
	x.s.hooks.run(Executed, x)
	return res
}

// cut ends the connection without an answer and doesn't return.
func (x *exchange) cut(how Cut) {
	x.finish(0)
	if h, ok := x.w.(http.Hijacker); ok {
		if conn, _, err := h.Hijack(); err == nil {
			if how == Reset {
				reset(conn)
			}
			_ = conn.Close()
		}
	}
	panic(http.ErrAbortHandler) // net/http ends the goroutine quietly, hijacked or not
}

// reset makes the close that follows send an RST.
func reset(conn net.Conn) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = t.NetConn()
	}
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
}

// send writes the answer. The ledger and the counts are settled before the last
// byte leaves, because the client may act on it at once.
func (x *exchange) send(res *result) {
	h := x.w.Header()
	h.Set("Server", "ZGS")
	h.Set("Cache-Control", "no-store")
	h["Set-Cookie"] = []string{
		"_zcsr_tmp=" + x.s.cookie + "; path=/; SameSite=Strict; Secure; priority=high",
		"JSESSIONID=" + x.s.cookie + "; Path=/; Secure; HttpOnly",
	}
	if x.call.Endpoint == API {
		h.Set("clientVersion", "1234567")
		if x.access != nil {
			h.Set("X-ACCESSTOKEN-RESET", x.access.expires.Format(time.RFC3339))
		}
		if left, tell := x.org.creditsLeft(x.s.now()); tell {
			h.Set("X-API-CREDITS-REMAINING", strconv.Itoa(left))
		}
	}
	if len(res.Body) > 0 {
		h.Set("Content-Type", "application/json;charset=UTF-8")
		if x.call.Endpoint == API {
			h.Set("Content-Disposition", "attachment; filename=response.json")
		}
	}
	for name, values := range res.Header {
		h[name] = values
	}
	if x.fault != nil && x.fault.send != nil {
		x.fault.send(x, &res.Answer)
		return
	}
	if len(res.Body) > 0 {
		h.Set("Content-Length", strconv.Itoa(len(res.Body)))
	}
	x.finish(res.Status)
	x.w.WriteHeader(res.Status)
	_, _ = x.w.Write(res.Body) // the client may have gone
}

// finish settles the call once: no longer in flight, and finished in the ledger.
func (x *exchange) finish(status int) {
	if x.finished {
		return
	}
	x.finished = true
	x.org.leave(x)
	x.s.orders.end(x)
	x.call.Status, x.call.Finished = status, x.s.now()
	if x.fault != nil {
		x.call.Fault = x.fault.Name
	}
	x.s.ledger.finish(x)
	x.s.hooks.run(Answered, x)
	if l := x.s.opt.Logger; l != nil {
		l.Debug("zoho call", slog.Uint64("seq", x.call.Seq), slog.String("endpoint", x.call.Endpoint),
			slog.String("method", x.call.Method), slog.String("path", x.call.Path), slog.Int("status", status),
			slog.String("code", x.call.Code), slog.Bool("applied", x.call.Applied), slog.String("fault", x.call.Fault))
	}
}

var errClosed = errors.New("the simulator was closed")
