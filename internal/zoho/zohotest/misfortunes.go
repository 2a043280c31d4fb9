package zohotest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Cause is what a 429 complains about; its text is the message.
type Cause string

// The three causes of a 429, which share their code.
const (
	CreditsExhausted Cause = "Many requests fired than the allowed limit for the past 24 hours."
	Concurrency      Cause = "You have reached the concurrency limit of API calls. Please try again after some time."
	SubConcurrency   Cause = "You have reached the sub-concurrency limit of API calls. Please try again after some time."
)

// TooManyRequests is a 429 in the API's own envelope, without any Retry-After.
func TooManyRequests(c Cause) Fault {
	f := AnswerWith("429", http.StatusTooManyRequests, "")
	f.Answer.Body = tooMany(c).Body
	return f
}

// TooManyRequestsRetry is a 429 that tells when to come back, in whole seconds:
// in the details (the shape of Zoho's OpenAPI sample) and in a Retry-After header.
func TooManyRequestsRetry(c Cause, after time.Duration) Fault {
	s := int(after.Seconds())
	return AnswerWith("429 retry", http.StatusTooManyRequests, fmt.Sprintf(
		`{"code":"TOO_MANY_REQUESTS","message":%q,"status":"error","details":{"trace_id":"rate-limit-trace-id-001","retry_after":%d,"limit":100,"window":60}}`,
		string(c), s), "Retry-After", strconv.Itoa(s))
}

// TooManyRequestsLegacy is a 429 in the older shape, whose code is a number.
func TooManyRequestsLegacy(c Cause) Fault {
	return AnswerWith("429 legacy", http.StatusTooManyRequests, fmt.Sprintf(
		`{"code":429,"error":"TOO_MANY_REQUESTS","error_info":%q,"details":[]}`, string(c)))
}

// InternalError is Zoho's own 500.
func InternalError() Fault {
	return AnswerWith("500", http.StatusInternalServerError, `{"code":"INTERNAL_ERROR","message":"Internal Server Error","status":"error","details":{}}`)
}

// Maintenance is Zoho's own 503.
func Maintenance() Fault {
	return AnswerWith("503", http.StatusServiceUnavailable, `{"code":"SERVICE_UNAVAILABLE","details":{},"message":"Service temporarily unavailable for maintenance","status":"error"}`)
}

// RefuseRecords refuses each record of a write for which code returns one, and
// lets the call write the others.
func RefuseRecords(code func(fields map[string]any) string) Fault {
	return Fault{Name: "refuse records", refuse: code}
}

// HTMLError is a page of a gateway: 502 and 504, and 400 as seen under load.
func HTMLError(status int) Fault {
	text := strconv.Itoa(status) + " " + http.StatusText(status)
	return AnswerWith(strconv.Itoa(status)+" html", status,
		"<html>\r\n<head><title>"+text+"</title></head>\r\n<body>\r\n<center><h1>"+text+"</h1></center>\r\n<hr><center>ZGS</center>\r\n</body>\r\n</html>\r\n",
		"Content-Type", "text/html;charset=UTF-8")
}

// InvalidToken is the 401 of an expired, evicted or revoked token.
func InvalidToken() Fault { return refusal("INVALID_TOKEN", invalidToken()) }

// ScopeMismatch is the 401 that no refresh can help.
func ScopeMismatch() Fault { return refusal("OAUTH_SCOPE_MISMATCH", scopeMismatch()) }

// NoPermission is the 403 of a profile without API access.
func NoPermission() Fault {
	return refusal("NO_PERMISSION", fail(http.StatusForbidden, "NO_PERMISSION", "permission denied",
		params{"permissions": []string{"Crm_Implied_Api_Access"}}))
}

func refusal(name string, r *result) Fault { return Fault{Name: name, Answer: &r.Answer} }

// CutUnread cuts the connection before the body is read.
func CutUnread(how Cut) Fault { return Fault{Name: "cut unread", Unread: true, Cut: how} }

// CutRead cuts the connection after the body was read, without executing the call.
func CutRead(how Cut) Fault { return Fault{Name: "cut read", Cut: how} }

// CutApplied executes the call and then cuts the connection.
func CutApplied(how Cut) Fault { return Fault{Name: "cut applied", Cut: how, Execute: true} }

// DelayBefore makes a call wait before it executes; it executes even if the client has gone.
func DelayBefore(d time.Duration) Fault { return Fault{Name: "delay before", Before: d} }

// DelayAfter makes a call wait after it executed.
func DelayAfter(d time.Duration) Fault { return Fault{Name: "delay after", Wait: d} }

// Drip answers as usual, but sends the body in pieces of so many bytes, one per pause.
func Drip(piece int, pause time.Duration) Fault {
	return Fault{Name: "drip", send: func(x *exchange, a *Answer) {
		x.w.Header().Set("Content-Length", strconv.Itoa(len(a.Body)))
		if len(a.Body) == 0 {
			x.finish(a.Status)
		}
		x.w.WriteHeader(a.Status)
		flush(x.w)
		for rest := a.Body; len(rest) > 0; {
			n := min(max(piece, 1), len(rest))
			if !x.s.pause(pause) || x.r.Context().Err() != nil {
				x.finish(a.Status)
				x.cut(Close)
			}
			if n == len(rest) {
				x.finish(a.Status)
			}
			_, _ = x.w.Write(rest[:n])
			flush(x.w)
			rest = rest[n:]
		}
	}}
}

// HugeBody answers a call, executed as usual, with 200 and a JSON string of n
// bytes; negative: without end, until the client goes.
func HugeBody(n int64) Fault {
	return Fault{Name: "huge body", send: func(x *exchange, _ *Answer) {
		if n >= 0 {
			x.w.Header().Set("Content-Length", strconv.FormatInt(max(n, 2), 10))
		}
		defer x.finish(http.StatusOK)
		x.w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(x.w, `"`)
		block := bytes.Repeat([]byte("x"), 32<<10)
		for left := n - 2; n < 0 || left > 0; left -= int64(len(block)) {
			if n >= 0 && left < int64(len(block)) {
				block = block[:left]
			}
			if _, err := x.w.Write(block); err != nil || x.closed() {
				return
			}
		}
		x.finish(http.StatusOK)
		_, _ = io.WriteString(x.w, `"`)
	}}
}

// GzipBomb answers a call, executed as usual, with 200 and about n/1000 bytes
// that a client inflates to n, a JSON string; whole MiB, at least two.
func GzipBomb(n int64) Fault {
	return Fault{Name: "gzip bomb", send: func(x *exchange, _ *Answer) {
		mib := bytes.Repeat([]byte("x"), 1<<20)
		h := x.w.Header()
		h.Set("Content-Encoding", "gzip")
		h.Del("Content-Length")
		defer x.finish(http.StatusOK)
		x.w.WriteHeader(http.StatusOK)
		// A gzip stream may have many members: the same one again and again is cheap to make.
		first, middle, last := gzipped(append([]byte(`"`), mib[1:]...)), gzipped(mib), gzipped(append(mib[1:], '"'))
		_, _ = x.w.Write(first)
		for i := int64(2); i < n>>20; i++ {
			if _, err := x.w.Write(middle); err != nil || x.closed() {
				return
			}
		}
		x.finish(http.StatusOK)
		_, _ = x.w.Write(last)
	}}
}

// Truncated answers as usual, but promises n bytes more than it sends, and cuts.
func Truncated(n int) Fault {
	return Fault{Name: "truncated", send: func(x *exchange, a *Answer) {
		x.w.Header().Set("Content-Length", strconv.Itoa(len(a.Body)+n))
		x.finish(a.Status)
		x.w.WriteHeader(a.Status)
		_, _ = x.w.Write(a.Body)
		flush(x.w)
		panic(http.ErrAbortHandler) // closes the connection
	}}
}

// TokenThrottle is the throttle of the token endpoint as it is seen: 400.
func TokenThrottle() Fault { return onToken(refusal("throttle", accessDenied(http.StatusBadRequest))) }

// TokenThrottle200 is the throttle of the token endpoint as an older page has it: 200.
func TokenThrottle200() Fault { return onToken(refusal("throttle 200", accessDenied(http.StatusOK))) }

// TokenInvalidClient is the answer to a wrong client id.
func TokenInvalidClient() Fault {
	return onToken(refusal("invalid_client", oauthError("invalid_client")))
}

// TokenHTML500 is a page where JSON belongs.
func TokenHTML500() Fault { return onToken(HTMLError(http.StatusInternalServerError)) }

// TokenSlow makes the token endpoint wait before it mints.
func TokenSlow(d time.Duration) Fault { return onToken(DelayBefore(d)) }

// TokenAPIDomain mints as usual and names this api_domain; "" leaves it out.
func TokenAPIDomain(domain string) Fault {
	return onToken(Fault{Name: "api_domain", Edit: func(a *Answer) {
		var body map[string]any
		if decode(a.Body, &body) != nil || body["access_token"] == nil {
			return
		}
		delete(body, "api_domain")
		if domain != "" {
			body["api_domain"] = domain
		}
		a.Body = encode(body)
	}})
}

func onToken(f Fault) Fault {
	f.Endpoint = Token
	return f
}

func gzipped(b []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(b)
	_ = w.Close()
	return buf.Bytes()
}

func flush(w http.ResponseWriter) {
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}

func (x *exchange) closed() bool {
	select {
	case <-x.s.closed:
		return true
	default:
		return false
	}
}
