package envelope

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// BodyOf returns how an answer's body is carried: JSON as it came where the
// content type says JSON and it is; text where the content type is textual
// (JSON that isn't counts, Zoho's gateways answer HTML under any name) and it
// is UTF-8; bytes otherwise. An empty body is NoBody. Data aliases data; white
// space around a JSON value is no part of it and is cut off.
func BodyOf(contentType string, data []byte) Body {
	if len(data) == 0 {
		return Body{}
	}
	media, _, _ := strings.Cut(contentType, ";")
	media = lower(strings.TrimSpace(media))
	if isJSONType(media) && validJSON(data, MaxDepth) {
		return Body{Kind: JSONBody, Data: bytes.Trim(data, " \t\r\n")}
	}
	if isTextType(media) && utf8.Valid(data) {
		return Body{Kind: TextBody, Data: data}
	}
	return Body{Kind: BytesBody, Data: data}
}

func isJSONType(media string) bool {
	return media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}

func isTextType(media string) bool {
	switch media {
	case "application/xml", "application/javascript", "application/x-www-form-urlencoded":
		return true
	}
	return strings.HasPrefix(media, "text/") || strings.HasSuffix(media, "+xml") || isJSONType(media)
}
