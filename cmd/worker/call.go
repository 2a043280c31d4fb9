package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nuid"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"zoho-worker/internal/app"
	"zoho-worker/internal/envelope"
)

type callFlags struct {
	query, header, probeHeader      []string
	body, bodyObject, id, deadline  string
	uniqueField, orderKey           string
	probeField, probeCOQL, probeURL string
	retryFailedRecords, bulk        bool
}

func callCommand() *cobra.Command {
	var flags callFlags
	cmd := &cobra.Command{
		Use:   "call CONNECTION METHOD URL",
		Short: "Publish a request and wait for its response",
		Long: `Publish a request and wait for its response.

The body goes to standard output, status and timing to standard error.
Exit status: 0 for 2xx and 3xx, 1 for 4xx and 5xx, 2 for an error of the worker.`,
		Example: `  worker call demo GET /v8/Leads --query fields=Last_Name,Email --query per_page=3
  worker call demo POST /v8/Leads --body '{"data":[{"Last_Name":"Byron"}]}'
  worker call demo PUT /v8/Leads/5725767000000524157 --body @lead.json
  worker call demo POST /v8/Leads --body @leads.json --probe-field External_Ref --retry-failed-records --bulk`,
		Args: cobra.ExactArgs(3),
	}
	config := clientConfig(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		request, err := flags.request(args[1], args[2], cmd.InOrStdin())
		if err != nil {
			return err
		}
		if slip := almostJSON(request.Body); slip != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "the body is sent as text: it is no JSON: %v\n", slip)
		}
		return call(cmd, config, args[0], request, flags.bulk)
	}
	f := cmd.Flags()
	f.StringArrayVarP(&flags.query, "query", "q", nil, "query parameter, k=v; may be given again")
	f.StringArrayVarP(&flags.header, "header", "H", nil, "header, k:v; may be given again")
	f.StringVarP(&flags.body, "body", "b", "", "body: JSON, or text or bytes as they are; @file, or - for standard input")
	f.StringVar(&flags.id, "id", "", "id of the request, its idempotency key (default a new one)")
	f.StringVar(&flags.deadline, "deadline", "", "when to give up: a duration from now (30s) or an RFC 3339 time (default in 15 minutes)")
	f.StringVar(&flags.bodyObject, "body-object", "", "body: the name of an object in the object store ZOHO_BODIES; it begins with CONNECTION/")
	f.StringVar(&flags.uniqueField, "unique-field", "", "unique field of the record that holds the id: makes an insert safe to repeat")
	f.StringVar(&flags.probeField, "probe-field", "", "field with another value in each record: by it an insert is looked up whose answer was lost")
	f.StringVar(&flags.probeCOQL, "probe-coql", "", "COQL condition that only the inserted record meets, to look it up by")
	f.StringVar(&flags.probeURL, "probe-url", "", "url that answers with the inserted record, to look it up by")
	f.StringArrayVar(&flags.probeHeader, "probe-header", nil, "header of --probe-url, k:v, like X-EXTERNAL; may be given again")
	f.BoolVar(&flags.retryFailedRecords, "retry-failed-records", false, "send records again that fail for a passing reason")
	f.StringVar(&flags.orderKey, "order-key", "", "requests with the same key are carried out one after the other")
	f.BoolVar(&flags.bulk, "bulk", false, "publish to the bulk lane: interactive requests go first")
	cmd.MarkFlagsMutuallyExclusive("body", "body-object")
	cmd.MarkFlagsMutuallyExclusive("probe-field", "probe-coql", "probe-url", "unique-field")
	return cmd
}

// request builds the envelope and has it judged as a worker would, so that a
// mistake is told at once.
func (f callFlags) request(method, target string, stdin io.Reader) (*envelope.Request, error) {
	document := map[string]any{"id": f.id, "method": strings.ToUpper(method), "url": target}
	if f.id == "" {
		document["id"] = nuid.Next()
	}
	query := map[string]any{}
	for _, pair := range f.query {
		name, value, err := cutPair("query", pair, "=")
		if err != nil {
			return nil, err
		}
		before, _ := query[name].([]string)
		query[name] = append(before, value)
	}
	put(document, "query", query)
	headers, err := headersOf("header", f.header)
	if err != nil {
		return nil, err
	}
	put(document, "headers", headers)
	probe := map[string]any{}
	put(probe, "field", f.probeField)
	put(probe, "coql", f.probeCOQL)
	put(probe, "url", f.probeURL)
	if headers, err = headersOf("probe-header", f.probeHeader); err != nil {
		return nil, err
	}
	put(probe, "headers", headers)
	put(document, "probe", probe)
	put(document, "unique_field", f.uniqueField)
	put(document, "order_key", f.orderKey)
	put(document, "body_object", f.bodyObject)
	if f.retryFailedRecords {
		document["retry_failed_records"] = true
	}
	if f.deadline != "" {
		at, err := time.Parse(time.RFC3339, f.deadline)
		if d, derr := time.ParseDuration(f.deadline); derr == nil {
			at, err = time.Now().Add(d), nil
		}
		if err != nil {
			return nil, fmt.Errorf("--deadline %q: a duration like 30s, or a time like 2026-01-02T15:04:05Z", f.deadline)
		}
		document["deadline"] = at.UTC().Format(time.RFC3339Nano)
	}
	body, err := readBody(f.body, stdin)
	if err != nil {
		return nil, err
	}
	switch {
	case len(body) == 0:
	case json.Valid(body):
		document["body"] = json.RawMessage(body)
	case utf8.Valid(body):
		document["body_text"] = string(body)
	default:
		document["body_base64"] = body
	}
	var data bytes.Buffer
	encoder := json.NewEncoder(&data)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(document); err != nil {
		return nil, err
	}
	return (&envelope.Decoder{MaxBytes: 64 << 20}).Decode(data.Bytes(), time.Now())
}

// almostJSON is what is wrong with a text that begins as JSON does; nil for any other.
func almostJSON(body envelope.Body) error {
	text := bytes.TrimSpace(body.Data)
	if body.Kind != envelope.TextBody || len(text) == 0 || text[0] != '{' && text[0] != '[' {
		return nil
	}
	var into any
	return json.Unmarshal(text, &into)
}

// put sets what isn't empty.
func put[T string | map[string]any](document map[string]any, name string, value T) {
	if len(value) > 0 {
		document[name] = value
	}
}

func headersOf(flag string, given []string) (map[string]any, error) {
	headers := map[string]any{}
	for _, pair := range given {
		name, value, err := cutPair(flag, pair, ":")
		if err != nil {
			return nil, err
		}
		headers[name] = value
	}
	return headers, nil
}

func cutPair(flag, pair, separator string) (name, value string, err error) {
	name, value, ok := strings.Cut(pair, separator)
	if !ok {
		return "", "", fmt.Errorf("--%s %q: write it as name%svalue", flag, pair, separator)
	}
	return strings.TrimSpace(name), strings.TrimSpace(value), nil
}

func readBody(arg string, stdin io.Reader) ([]byte, error) {
	switch {
	case arg == "-":
		return io.ReadAll(stdin)
	case strings.HasPrefix(arg, "@"):
		data, err := os.ReadFile(arg[1:])
		if err != nil {
			return nil, fmt.Errorf("--body: %w", err)
		}
		return data, nil
	}
	return []byte(arg), nil
}

func call(cmd *cobra.Command, config *app.Config, connection string, request *envelope.Request, bulk bool) error {
	if !envelope.ValidConnection(connection) {
		return fmt.Errorf("connection %q: lower-case letters, digits, - and _, like acme-sales", connection)
	}
	lane := connection
	if bulk {
		lane += ".bulk"
	}
	var begun time.Time
	var response *envelope.Response
	err := withClient(cmd, config, func(c *client) (err error) {
		show, done := progressLine(cmd.ErrOrStderr())
		defer done()
		begun = time.Now()
		_, response, err = c.call(cmd.Context(), lane, request, show)
		return err
	})
	if err != nil {
		return err
	}
	if err := writeBody(cmd.OutOrStdout(), response.Body); err != nil {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), summary(response, time.Since(begun)))
	switch {
	case response.Error != nil:
		return exitError{2}
	case response.Status >= 400:
		return exitError{1}
	}
	return nil
}

// summary is a response in one line.
func summary(r *envelope.Response, took time.Duration) string {
	var parts []string
	if r.Status != 0 {
		parts = append(parts, fmt.Sprint(r.Status))
	}
	if r.Error != nil {
		parts = append(parts, string(r.Error.Code)+": "+r.Error.Message)
	}
	if r.Outcome != "" {
		parts = append(parts, "outcome "+r.Outcome)
	}
	attempts := "1 attempt"
	if r.Attempts != 1 {
		attempts = fmt.Sprint(r.Attempts, " attempts")
	}
	return fmt.Sprintf("%s  (%s, %s, id %s)", strings.Join(parts, "  "), attempts, took.Round(time.Millisecond), r.ID)
}

// writeBody writes a body for its reader: JSON indented on a terminal, and as a line in
// a pipe; all else raw.
func writeBody(w io.Writer, body envelope.Body) error {
	data := body.Data
	if body.Kind == envelope.JSONBody {
		var indented bytes.Buffer
		if file, ok := w.(*os.File); ok && term.IsTerminal(int(file.Fd())) && json.Indent(&indented, data, "", "  ") == nil {
			data = indented.Bytes()
		}
		data = append(slices.Clip(data), '\n')
	}
	_, err := w.Write(data)
	return err
}
