package envelope

// Bounds of an envelope. Each is far above what Zoho's API is documented to
// need and far below what could hurt a worker.
const (
	// MaxBytes is the largest request envelope that a zero Decoder takes: the
	// default max_payload of a nats-server. Larger bodies go into ZOHO_BODIES.
	MaxBytes = 1 << 20
	// MaxDepth is how deep arrays and objects may nest in a JSON body. Zoho's
	// own bodies stay below 10; an unbounded depth is a way to eat our stack.
	MaxDepth = 128

	maxID          = 128
	maxReplyTo     = 255
	maxOrderKey    = 128
	maxPath        = 2 << 10 // bytes of url before '?', as given and as rebuilt
	maxQuery       = 8 << 10 // bytes of the whole query string, as sent
	maxQueryKeys   = 256
	maxQueryKey    = 128 // characters
	maxQueryList   = 256 // values of one key
	maxHeaders     = 64
	maxHeaderName  = 128
	maxHeaderValue = 8 << 10  // bytes
	maxHeaderBytes = 16 << 10 // names and values of all headers together
	maxObjectName  = 255      // characters
)

// salvageDepth bounds the nesting of a document that is only searched for whom
// to answer. It is encoding/json's own bound.
const salvageDepth = 10_000

// validID reports whether id can name a request: 1 to 128 of A-Z a-z 0-9 _ -.
// Such an id is also a token of a NATS subject.
func validID[T string | []byte](id T) bool {
	if len(id) == 0 || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		if !isWord(id[i]) && id[i] != '-' {
			return false
		}
	}
	return true
}

// ValidConnection reports whether name can name a connection:
// ^[a-z0-9][a-z0-9_-]{0,62}$, so it is a token of a NATS subject.
func ValidConnection(name string) bool {
	if name == "" || len(name) > 63 || name[0] == '_' || name[0] == '-' {
		return false
	}
	for i := range len(name) {
		c := name[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
func isWord(c byte) bool   { return isLetter(c) || isDigit(c) || c == '_' }

// hasControl reports whether s has a control character: C0, DEL or C1.
func hasControl(s []byte) bool {
	for i, c := range s {
		if c < 0x20 || c == 0x7f || c == 0xc2 && i+1 < len(s) && s[i+1]&0xe0 == 0x80 {
			return true // in valid UTF-8, C1 is 0xc2 followed by 0x80 to 0x9f
		}
	}
	return false
}

// appendLower appends s with A-Z in lower case. Letters beyond ASCII stay: what
// a server takes for a letter k is not the Kelvin sign.
func appendLower[T string | []byte](dst []byte, s T) []byte {
	for i := range len(s) {
		c := s[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}

func lower(s string) string {
	for i := range len(s) {
		if 'A' <= s[i] && s[i] <= 'Z' {
			return string(appendLower(nil, s))
		}
	}
	return s
}
