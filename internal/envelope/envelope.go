// Package envelope holds the words on the wire: the request a service
// publishes, the response it gets, and the closed list of error codes.
//
// It decodes and validates, and does no I/O. What Decoder.Decode accepts is
// valid for everybody after it: nothing downstream checks an envelope again.
//
// Invariants: a JSON body is carried byte for byte, both ways; a Request's Path
// can't leave /crm of the connection's own host; decoding never panics and never
// guesses (duplicate keys, unknown fields, wrong case and invalid UTF-8 are refused).
package envelope

import "time"

// Code says what the worker has to add to a response. The list is closed:
// schemas/response.schema.json and docs/envelope.md hold the same one.
type Code string

// The codes, each with what the requester can do about it in docs/envelope.md.
const (
	InvalidRequest          Code = "invalid_request"
	UnknownConnection       Code = "unknown_connection"
	ReauthorizationRequired Code = "reauthorization_required"
	ScopeMissing            Code = "scope_missing"
	DeadlineExceeded        Code = "deadline_exceeded"
	OutcomeUnknown          Code = "outcome_unknown"
	IDConflict              Code = "id_conflict"
	TooLarge                Code = "too_large"
	RetriesExhausted        Code = "retries_exhausted"
	Internal                Code = "internal"
)

// Codes returns the closed list, in the order of the documentation.
func Codes() []Code {
	return []Code{
		InvalidRequest, UnknownConnection, ReauthorizationRequired, ScopeMissing, DeadlineExceeded,
		OutcomeUnknown, IDConflict, TooLarge, RetriesExhausted, Internal,
	}
}

// WayBack begins the subjects by which the server takes an answer to a caller in an
// account of its own; it makes one up for each of a caller's requests of a service.
const WayBack = "_R_."

// Error is what a response's error field says. For InvalidRequest the message
// begins with the field at fault: "url: must begin with /v<N>/ or /bulk/v<N>/".
type Error struct {
	Code    Code
	Message string
}

// Error implements error.
func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Header is one header of a request or response. Names keep the caller's spelling.
type Header struct{ Name, Value string }

// BodyKind tells which of the four body fields carries a body.
type BodyKind uint8

// The kinds of body.
const (
	NoBody     BodyKind = iota
	JSONBody            // body: any JSON value, its very bytes
	TextBody            // body_text
	BytesBody           // body_base64
	ObjectBody          // body_object: the name of an object in the bucket ZOHO_BODIES
)

// Body is a request's or response's body. Data is the JSON as it came, the
// text, the decoded bytes, or the object's name; it may alias the document it
// was decoded from.
type Body struct {
	Kind BodyKind
	Data []byte
}

// Request is a decoded, valid request envelope.
type Request struct {
	ID     string
	Method string // GET POST PUT PATCH DELETE
	// Path is the escaped path to call, rebuilt from the decoded segments of
	// url: "/crm/v8/Leads".
	Path string
	// RawQuery is url's own query string byte for byte, then the query field's.
	RawQuery    string
	Headers     []Header
	Body        Body
	ReplyTo     string
	Deadline    time.Time // always set: default DefaultDeadline after receipt
	UniqueField string
	// OrderKey, where it isn't empty, puts the request in a line with the others
	// of its connection that have the same: each is carried out after the one before it.
	OrderKey string
	// Probe is how an insert is looked up whose outcome is unknown; nil: it isn't.
	Probe *Probe
	// RetryFailedRecords says that the records that failed for a passing reason
	// are to be sent again.
	RetryFailedRecords bool
}

// Response is a response envelope.
type Response struct {
	ID         string
	Connection string
	// Status is Zoho's HTTP status; 0 (left out on the wire) where Zoho never answered.
	Status  int
	Headers []Header
	Body    Body
	// Attempts counts how often the answering worker sent the request to Zoho.
	Attempts   int
	ReceivedAt time.Time
	FinishedAt time.Time
	// Outcome is empty for an answer as Zoho gave it, and Confirmed where the
	// worker established what happened and composed the answer from it.
	Outcome string
	// Records sums up what Zoho said of each record of a write; nil where it said nothing.
	Records *Records
	// Credits is what the request cost of the org's API credits; nil where it cost none.
	Credits *Credits
	Error   *Error
}

// Credits are Zoho's API credits, which an org has a number of for any 24 hours.
type Credits struct {
	// Used is what the request's attempts cost, all those of the answering worker together.
	Used int
	// Remaining is what the org had left then, where Known says that somebody knows.
	Remaining int64
	Known     bool
}

// Records sums up the results of a write, record by record: Zoho may answer 200
// or 207 though records failed.
type Records struct {
	Succeeded int
	Failed    int
	// Codes counts Zoho's codes of the records that failed.
	Codes map[string]int
}

// Add counts one record, by Zoho's code if it failed.
func (r *Records) Add(code string, done bool) {
	if done {
		r.Succeeded++
		return
	}
	r.Failed++
	if r.Codes == nil {
		r.Codes = map[string]int{}
	}
	r.Codes[code]++
}

// Confirmed is the Outcome of an insert whose first answer was lost and which
// Zoho has since shown to have happened.
const Confirmed = "confirmed"

// DefaultDeadline is how long after its receipt a request without a deadline
// is given up; MaxDeadline is the furthest ahead of its receipt a deadline may be.
const (
	DefaultDeadline = 15 * time.Minute
	MaxDeadline     = 24 * time.Hour
)
