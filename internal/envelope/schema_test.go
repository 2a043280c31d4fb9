package envelope

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"zoho-worker/schemas"
)

// received is when the documents of testdata were stored.
var received = time.Date(2026, 1, 31, 15, 0, 0, 0, time.UTC)

var testDecoder = &Decoder{ReplyPrefixes: []string{"_INBOX."}}

func compileSchema(t testing.TB, text []byte) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	id := doc.(map[string]any)["$id"].(string)
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(id, doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile(id)
	if err != nil {
		t.Fatal(err)
	}
	return schema
}

// schemaAccepts judges what a service with an ordinary JSON library would see.
func schemaAccepts(schema *jsonschema.Schema, data []byte) error {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return err
	}
	return schema.Validate(doc)
}

// eachFile runs a subtest per document, named like the file: the rows of
// "Bad inputs" are found by their number.
func eachFile(t *testing.T, dir string, check func(t *testing.T, name string, data []byte)) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in %s: %v", dir, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		names = append(names, name)
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			check(t, name, data)
		})
	}
	return names
}

func TestValidDocuments(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t, schemas.Request)
	eachFile(t, "valid", func(t *testing.T, _ string, data []byte) {
		r, err := testDecoder.Decode(data, received)
		if err != nil {
			t.Fatalf("refused: %v", err)
		}
		if err := schemaAccepts(schema, data); err != nil {
			t.Errorf("schema: %v", err)
		}
		checkRoundTrip(t, schema, r)
	})
}

func TestInvalidDocuments(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t, schemas.Request)
	names := eachFile(t, "invalid", func(t *testing.T, name string, data []byte) {
		_, err := testDecoder.Decode(data, received)
		checkRefusal(t, err, invalidFields[name])
		if schemaAccepts(schema, data) == nil {
			t.Errorf("the schema takes it; Go says %v", err)
		}
	})
	if len(names) != len(invalidFields) {
		t.Errorf("%d files, %d expectations", len(names), len(invalidFields))
	}
}

func TestBeyondSchemaDocuments(t *testing.T) {
	t.Parallel()
	schema := compileSchema(t, schemas.Request)
	rules := map[rule]bool{}
	names := eachFile(t, "beyond_schema", func(t *testing.T, name string, data []byte) {
		want := beyondSchema[name]
		_, err := testDecoder.Decode(data, received)
		checkRefusal(t, err, want.field)
		if _, f := testDecoder.decode(data, received); f == nil || f.rule != want.rule {
			t.Errorf("refused as %v, want rule %v", f, want.rule)
		}
		if err := schemaAccepts(schema, data); err != nil {
			t.Errorf("the schema refuses it too, so it belongs into testdata/invalid: %v", err)
		}
	})
	for _, want := range beyondSchema {
		rules[want.rule] = true
	}
	for r := inSchema + 1; r < ruleNumber; r++ { // a request has no integers
		if !rules[r] {
			t.Errorf("no document for rule %v", r)
		}
	}
	if len(names) != len(beyondSchema) {
		t.Errorf("%d files, %d expectations", len(names), len(beyondSchema))
	}
}

// checkRefusal holds what every refusal has: the closed list's code, the field
// in front, and nothing of the document's values.
func checkRefusal(t *testing.T, err error, field string) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("accepted, or refused with %T %v", err, err)
	}
	if e.Code != InvalidRequest || field == "" || !strings.HasPrefix(e.Message, field+": ") {
		t.Errorf("refused with %v, want invalid_request for %q", e, field)
	}
	if strings.Contains(e.Message, "s3cret") {
		t.Errorf("the message shows a value: %q", e.Message)
	}
}

// checkRoundTrip encodes a decoded request and decodes it again.
func checkRoundTrip(t *testing.T, schema *jsonschema.Schema, r *Request) {
	t.Helper()
	data := r.AppendJSON(nil)
	if err := schemaAccepts(schema, data); err != nil {
		t.Fatalf("schema refuses what AppendJSON made, %s: %v", data, err)
	}
	again, err := testDecoder.Decode(data, received)
	if err != nil {
		t.Fatalf("Decode refuses what AppendJSON made, %s: %v", data, err)
	}
	if !again.Deadline.Equal(r.Deadline) {
		t.Errorf("deadline %v became %v", r.Deadline, again.Deadline)
	}
	if again.Digest() != r.Digest() {
		t.Error("the digest changed")
	}
	again.Deadline = r.Deadline
	if len(again.Headers) == 0 && len(r.Headers) == 0 {
		again.Headers = r.Headers
	}
	if len(again.Body.Data) == 0 && len(r.Body.Data) == 0 {
		again.Body.Data = r.Body.Data
	}
	if !reflect.DeepEqual(again, r) {
		t.Errorf("round trip:\n got %+v\nwant %+v", again, r)
	}
}

// hasDuplicates reports whether any object has a key twice: encoding/json, and
// so the schema, sees the last one only.
func hasDuplicates(data []byte) bool {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var keys []map[string]bool // of the objects around; nil for an array
	isKey := false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) || err != nil {
			return false
		}
		if delim, ok := token.(json.Delim); ok {
			switch delim {
			case '{':
				keys = append(keys, map[string]bool{})
			case '[':
				keys = append(keys, nil)
			default:
				keys = keys[:len(keys)-1]
			}
			isKey = len(keys) > 0 && keys[len(keys)-1] != nil
			continue
		}
		if len(keys) == 0 || keys[len(keys)-1] == nil {
			continue
		}
		if text, ok := token.(string); ok && isKey {
			if keys[len(keys)-1][text] {
				return true
			}
			keys[len(keys)-1][text] = true
		}
		isKey = !isKey
	}
}

func FuzzDecodeAgreesWithSchema(f *testing.F) {
	schema := compileSchema(f, schemas.Request)
	for _, dir := range []string{"valid", "invalid", "beyond_schema"} {
		files, _ := filepath.Glob(filepath.Join("testdata", dir, "*.json"))
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			if len(data) < 2000 { // the long ones only slow mutation down
				f.Add(data)
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		_, fault := testDecoder.decode(data, received)
		req, err := testDecoder.Decode(data, received)
		if !bytes.Equal(before, data) {
			t.Fatal("Decode changed the document")
		}
		if req == nil || (err == nil) != (fault == nil) {
			t.Fatalf("request %v, error %v, fault %v", req, err, fault)
		}
		if req.ID != "" && !validID(req.ID) {
			t.Errorf("id %q", req.ID)
		}
		if _, why := testDecoder.checkReplyTo([]byte(req.ReplyTo)); req.ReplyTo != "" && why != "" {
			t.Errorf("reply_to %q %s", req.ReplyTo, why)
		}
		judged := schemaAccepts(schema, data)
		if err == nil {
			if judged != nil {
				t.Fatalf("Go takes %s, the schema doesn't: %v", data, judged)
			}
			checkRoundTrip(t, schema, req)
			return
		}
		if judged == nil && fault.rule == inSchema && !hasDuplicates(data) {
			t.Fatalf("the schema takes %s, Go says %v by a rule of the schema", data, err)
		}
	})
}

func TestSchemaHasTheCodes(t *testing.T) {
	t.Parallel()
	var doc struct {
		Properties struct {
			Error struct {
				Properties struct {
					Code struct {
						Enum        []Code
						Description string
					}
				}
			}
		}
	}
	if err := json.Unmarshal(schemas.Response, &doc); err != nil {
		t.Fatal(err)
	}
	code := doc.Properties.Error.Properties.Code
	if !slices.Equal(code.Enum, Codes()) {
		t.Errorf("schema has %v, Go has %v", code.Enum, Codes())
	}
	for _, c := range Codes() {
		if !strings.Contains(code.Description, string(c)+": ") {
			t.Errorf("the schema doesn't describe %s", c)
		}
	}
}

func TestSchemaExamples(t *testing.T) {
	t.Parallel()
	for _, text := range [][]byte{schemas.Request, schemas.Response} {
		schema := compileSchema(t, text)
		var doc struct {
			Properties map[string]map[string]any
			Examples   []json.RawMessage
		}
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		for _, example := range doc.Examples {
			if err := schemaAccepts(schema, example); err != nil {
				t.Errorf("%s: %v", example, err)
			}
			var compact bytes.Buffer
			_ = json.Compact(&compact, example)
			_, reqErr := testDecoder.Decode(compact.Bytes(), received)
			_, respErr := DecodeResponse(compact.Bytes())
			if reqErr != nil && respErr != nil {
				t.Errorf("%s: %v; %v", example, reqErr, respErr)
			}
		}
		for name, property := range doc.Properties {
			examples, _ := property["examples"].([]any)
			if text, _ := property["description"].(string); text == "" || len(examples) == 0 {
				t.Errorf("%s has no description or no examples", name)
			}
			for _, example := range examples {
				if err := schema.Properties[name].Validate(example); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
	}
}

// TestSchemaFields holds that neither side has a field that the other lacks.
func TestSchemaFields(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text   []byte
		fields []string
	}{{schemas.Request, requestFields}, {schemas.Response, responseFields}} {
		schema := compileSchema(t, test.text)
		for _, field := range test.fields {
			if schema.Properties[field] == nil {
				t.Errorf("%s: no %s", schema.ID, field)
			}
		}
		if len(schema.Properties) != len(test.fields) {
			t.Errorf("%s has %d fields, Go %d", schema.ID, len(schema.Properties), len(test.fields))
		}
	}
}
