package zohotest

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
)

// Answer is a response. Header replaces what the server would have set itself.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// result is an answer with what the ledger wants to know about it.
type result struct {
	Answer
	code    string
	applied bool
	ids     []string
}

// problem is the API's error body, and the outcome of one record of a write.
type problem struct {
	Code    string `json:"code"`
	Details any    `json:"details"`
	Message string `json:"message"`
	Status  string `json:"status"`
}

// params is a details object.
type params = map[string]any

// fail is an error of the API; nil details are an empty object.
func fail(status int, code, message string, details any) *result {
	if details == nil {
		details = params{}
	}
	return &result{
		Answer: Answer{Status: status, Body: encode(problem{code, details, message, "error"})},
		code:   code,
	}
}

// failOnce is the error of a write that is refused as a whole: in data, once for all records.
func failOnce(code, message string, details any) *result {
	return reply(http.StatusBadRequest, code, params{"data": []any{problem{code, details, message, "error"}}})
}

// reply is any other answer with a JSON body.
func reply(status int, code string, body any) *result {
	return &result{Answer: Answer{Status: status, Body: encode(body)}, code: code}
}

// empty is an answer without a body: 204, 304.
func empty(status int) *result { return &result{Answer: Answer{Status: status}} }

// encode leaves <, > and & alone, as Zoho does.
func encode(v any) []byte {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("zohotest: " + err.Error()) // only our own types and decoded JSON come here
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n"))
}

// decode reads one JSON value and keeps its numbers as they are written.
func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errTrailing
	}
	return nil
}

// The errors that more than one place gives, word for word.
func authenticationFailure() *result {
	return fail(http.StatusUnauthorized, "AUTHENTICATION_FAILURE", "Authentication failed", nil)
}

func invalidToken() *result {
	return fail(http.StatusUnauthorized, "INVALID_TOKEN", "invalid oauth token", nil)
}

func scopeMismatch() *result {
	return fail(http.StatusUnauthorized, "OAUTH_SCOPE_MISMATCH", "invalid oauth scope to access this URL", nil)
}

func noSuchURL() *result {
	return fail(http.StatusNotFound, "INVALID_URL_PATTERN", "Please check if the URL trying to access is a correct one", nil)
}

func wrongMethod() *result {
	return fail(http.StatusBadRequest, "INVALID_REQUEST_METHOD", "The http request method type is not a valid one", nil)
}

func missingParam(name string) *result {
	return fail(http.StatusBadRequest, "REQUIRED_PARAM_MISSING", "One of the expected parameter is missing", params{"param_name": name})
}

func tooLarge() *result {
	return fail(http.StatusRequestEntityTooLarge, "BODY_SIZE_REACHED", "The size of the body is more than the allowed size", nil)
}

func invalidParam(name, message string) *result {
	return fail(http.StatusBadRequest, "INVALID_DATA", message, params{"api_name": name})
}

func tooMany(c Cause) *result {
	return fail(http.StatusTooManyRequests, "TOO_MANY_REQUESTS", string(c), nil)
}
