package envelope

import (
	"encoding/base64"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// AppendJSON appends the request as an envelope: what Decode turns into the
// same request. url has the whole query; there is no query field.
func (r *Request) AppendJSON(dst []byte) []byte {
	dst = appendField(append(dst, '{'), "id", r.ID)
	dst = appendField(append(dst, ','), "method", r.Method)
	dst = appendField(append(dst, ','), "url", relative(r.Path, r.RawQuery))
	dst = appendHeaders(dst, r.Headers)
	dst = appendBody(dst, r.Body)
	if r.ReplyTo != "" {
		dst = appendField(append(dst, ','), "reply_to", r.ReplyTo)
	}
	if !r.Deadline.IsZero() {
		dst = append(dst, `,"deadline":"`...)
		dst = append(r.Deadline.AppendFormat(dst, time.RFC3339Nano), '"')
	}
	if r.UniqueField != "" {
		dst = appendField(append(dst, ','), "unique_field", r.UniqueField)
	}
	if r.OrderKey != "" {
		dst = appendField(append(dst, ','), "order_key", r.OrderKey)
	}
	if p := r.Probe; p != nil {
		dst = append(dst, `,"probe":{`...)
		switch {
		case p.COQL != "":
			dst = appendField(dst, "coql", p.COQL)
		case p.Field != "":
			dst = appendField(dst, "field", p.Field)
		default:
			dst = appendField(dst, "url", relative(p.Path, p.RawQuery))
			dst = appendHeaders(dst, p.Headers)
		}
		dst = append(dst, '}')
	}
	if r.RetryFailedRecords {
		dst = append(dst, `,"retry_failed_records":true`...)
	}
	return append(dst, '}')
}

// relative returns a path and a query as they stand in a url field.
func relative(path, query string) string {
	url := strings.TrimPrefix(path, apiRoot)
	if query != "" {
		url += "?" + query
	}
	return url
}

// AppendJSON appends the response as an envelope. Its JSON body is written
// byte for byte, so it must be JSON: BodyOf sees to that. Headers of one name
// become one, joined by ", ". Set-Cookie is dropped: nobody may use Zoho's
// session, and its values can't be joined. Times are cut to milliseconds.
//
// The ID is left out where it is empty: for a request whose id couldn't be read.
func (r *Response) AppendJSON(dst []byte) []byte {
	dst = append(dst, '{')
	if r.ID != "" {
		dst = append(appendField(dst, "id", r.ID), ',')
	}
	dst = appendField(dst, "connection", r.Connection)
	if r.Status != 0 {
		dst = append(dst, `,"status":`...)
		dst = strconv.AppendInt(dst, int64(r.Status), 10)
	}
	dst = appendHeaders(dst, r.Headers)
	dst = appendBody(dst, r.Body)
	dst = append(dst, `,"attempts":`...)
	dst = strconv.AppendInt(dst, int64(r.Attempts), 10)
	dst = append(dst, `,"received_at":"`...)
	dst = appendTime(dst, r.ReceivedAt)
	dst = append(dst, `","finished_at":"`...)
	dst = appendTime(dst, r.FinishedAt)
	dst = append(dst, '"')
	if r.Outcome != "" {
		dst = appendField(append(dst, ','), "outcome", r.Outcome)
	}
	if r.Records != nil {
		dst = append(dst, `,"records":{"succeeded":`...)
		dst = strconv.AppendInt(dst, int64(r.Records.Succeeded), 10)
		dst = append(dst, `,"failed":`...)
		dst = strconv.AppendInt(dst, int64(r.Records.Failed), 10)
		dst = append(dst, `,"codes":{`...)
		for i, code := range slices.Sorted(maps.Keys(r.Records.Codes)) {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendText(dst, code), ':')
			dst = strconv.AppendInt(dst, int64(r.Records.Codes[code]), 10)
		}
		dst = append(dst, "}}"...)
	}
	if r.Credits != nil {
		dst = append(dst, `,"credits":{"used":`...)
		dst = strconv.AppendInt(dst, int64(r.Credits.Used), 10)
		if r.Credits.Known {
			dst = append(dst, `,"remaining":`...)
			dst = strconv.AppendInt(dst, r.Credits.Remaining, 10)
		}
		dst = append(dst, '}')
	}
	if r.Error != nil {
		dst = appendField(append(dst, `,"error":{`...), "code", string(r.Error.Code))
		dst = appendField(append(dst, ','), "message", r.Error.Message)
		dst = append(dst, '}')
	}
	return append(dst, '}')
}

// appendTime appends t in timeFormat. AppendFormat writes no layout but RFC 3339's
// own in one go.
func appendTime(dst []byte, t time.Time) []byte {
	t = t.UTC()
	dst = t.AppendFormat(dst, time.RFC3339)
	ms := t.Nanosecond() / int(time.Millisecond)
	return append(dst[:len(dst)-1], '.', byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

// appendField appends "name":"value". The name must need no escaping.
func appendField(dst []byte, name, value string) []byte {
	dst = append(dst, '"')
	dst = append(dst, name...)
	dst = append(dst, `":`...)
	return appendText(dst, value)
}

func appendHeaders(dst []byte, headers []Header) []byte {
	written := 0
	for i := range headers {
		name := headers[i].Name
		if sameName(name, "Set-Cookie") || hasName(headers[:i], name) {
			continue
		}
		if written == 0 {
			dst = append(dst, `,"headers":{`...)
		} else {
			dst = append(dst, ',')
		}
		written++
		dst = append(appendText(dst, name), ':')
		value := headers[i].Value
		if later := headers[i+1:]; hasName(later, name) {
			for j := range later {
				if sameName(later[j].Name, name) {
					value += ", " + later[j].Value
				}
			}
		}
		dst = appendText(dst, value)
	}
	if written > 0 {
		dst = append(dst, '}')
	}
	return dst
}

func hasName(headers []Header, name string) bool {
	for i := range headers {
		if sameName(headers[i].Name, name) {
			return true
		}
	}
	return false
}

func sameName(a, b string) bool { return len(a) == len(b) && strings.EqualFold(a, b) }

func appendBody(dst []byte, body Body) []byte {
	switch body.Kind {
	case JSONBody:
		if len(body.Data) > 0 {
			dst = append(dst, `,"body":`...)
			dst = append(dst, body.Data...)
		}
	case TextBody:
		dst = appendText(append(dst, `,"body_text":`...), body.Data)
	case BytesBody:
		dst = append(dst, `,"body_base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, body.Data)
		dst = append(dst, '"')
	case ObjectBody:
		dst = appendText(append(dst, `,"body_object":`...), body.Data)
	}
	return dst
}

// appendText appends s as a JSON string. What isn't UTF-8 becomes U+FFFD:
// header values and texts from outside may be anything.
func appendText[T string | []byte](dst []byte, s T) []byte {
	dst = append(dst, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			// Four bytes are enough for any rune, and no string of them is allocated.
			if r, size := utf8.DecodeRuneInString(string(s[i:min(i+utf8.UTFMax, len(s))])); r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
		}
		dst = append(dst, s[start:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			if c < 0x20 {
				dst = append(dst, '\\', 'u', '0', '0', upperHex[c>>4], upperHex[c&15])
			} else {
				dst = append(dst, "\ufffd"...)
			}
		}
		i++
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
