package zoho

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"

	"zoho-worker/internal/envelope"
)

// Operation is what the table says of a call's method and path.
type Operation struct {
	// Name is of the table, or "other": a word of the log.
	Name string
	// Repeatable says that a second sending does no more than the first, unless
	// it is an update whose body adds rows. MayRepeat looks at the body too.
	Repeatable bool
	// Heavy says that the operation always counts against Zoho's
	// sub-concurrency of ten (zoho-facts 3.3). Writes of more than ten records
	// and lists that are sorted or by view do too, which the path can't tell.
	Heavy bool
	// Credits is the least that the call costs of the org's daily credits
	// (zoho-facts 3.2); more records or rows can make it more.
	Credits int
}

// row is one line of the table. An empty method is any. Of the pattern's
// segments after the version, "{m}" stands for a module, "*" for any one
// segment, and "…" at the end for all the rest, none included.
type row struct {
	method  string
	pattern string
	Operation
}

// The rows; the first that fits counts. Paths and credits are those of
// zoho-facts 3.2 to 4.9 and of Zoho's published OpenAPI description.
//
// POSTs: only COQL reads and nothing else. A function runs the customer's own
// code under any method, and a composite may hold any sub-request, so that
// neither is repeatable, whatever the method says. Nor are actions on a record or
// a module: a PUT to actions/blueprint takes a step of a process, and twice is two
// steps (https://www.zoho.com/crm/developer/docs/api/v8/update-blueprint.html).
var rows = []row{
	{"POST", "coql", Operation{"coql", true, true, 1}},
	{"", "__composite_requests", Operation{"composite", false, true, 1}},
	{"", "functions/…", Operation{"function", false, false, 1}},
	{"POST", "bulk:read", Operation{"bulk.read", false, false, 50}},
	{"POST", "bulk:write", Operation{"bulk.write", false, false, 500}},
	{"GET", "bulk:read/*/result", Operation{"bulk.result", true, false, 1}},
	{"GET", "bulk:read/*", Operation{"bulk.status", true, false, 1}},
	{"GET", "bulk:write/*", Operation{"bulk.status", true, false, 1}},
	{"POST", "upload", Operation{"upload", false, false, 1}},
	{"POST", "files", Operation{"upload", false, false, 1}},
	{"GET", "files", Operation{"download", true, false, 1}},
	{"POST", "{m}/*/Attachments", Operation{"upload", false, false, 1}},
	{"POST", "{m}/*/photo", Operation{"upload", false, false, 1}},
	{"GET", "{m}/*/Attachments/*", Operation{"download", true, false, 1}},
	{"GET", "{m}/*/photo", Operation{"download", true, false, 1}},
	{"POST", "settings/modules", Operation{"module.create", false, false, 500}},
	{"GET", "settings/…", Operation{"settings", true, false, 1}},
	{"GET", "{m}/search", Operation{"records.search", true, false, 1}},
	{"GET", "{m}/deleted", Operation{"records.deleted", true, false, 2}},
	{"GET", "{m}/actions/count", Operation{"records.count", true, false, 50}},
	{"POST", "{m}/actions/count", Operation{"records.count", false, false, 50}},
	{"POST", "{m}/upsert", Operation{"records.upsert", false, false, 1}},
	{"POST", "{m}/actions/mass_delete", Operation{"records.mass_delete", false, false, 1}},
	{"POST", "{m}/actions/mass_convert", Operation{"leads.mass_convert", false, false, 200}},
	{"POST", "{m}/*/actions/convert", Operation{"leads.convert", false, true, 5}},
	{"POST", "{m}/*/actions/send_mail", Operation{"mail.send", false, true, 20}},
	{"PUT", "{m}/*/actions/send_mail", Operation{"mail.send", false, true, 20}},
	{"POST", "{m}/*/actions/download_mail_merge", Operation{"mail.merge", false, false, 5}},
	{"POST", "{m}/*/actions/merge", Operation{"records.merge", false, false, 50}},
	{"POST", "{m}/*/actions/add_tags", Operation{"records.tag", false, false, 1}},
	{"POST", "{m}/*/actions/remove_tags", Operation{"records.tag", false, false, 1}},
	{"POST", "{m}/actions/add_tags", Operation{"records.tag", false, false, 1}},
	{"POST", "{m}/actions/remove_tags", Operation{"records.tag", false, false, 1}},
	{"PUT", "{m}/actions/…", Operation{"records.action", false, false, 1}},
	{"PUT", "{m}/*/actions/…", Operation{"records.action", false, false, 1}},
	{"PATCH", "{m}/actions/…", Operation{"records.action", false, false, 1}},
	{"PATCH", "{m}/*/actions/…", Operation{"records.action", false, false, 1}},
	{"DELETE", "{m}/actions/…", Operation{"records.action", false, false, 1}},
	{"DELETE", "{m}/*/actions/…", Operation{"records.action", false, false, 1}},
	{"GET", "{m}", Operation{"records.list", true, false, 1}},
	{"GET", "{m}/*", Operation{"records.get", true, false, 1}},
	{"POST", "{m}", Operation{"records.insert", false, false, 1}},
	{"PUT", "{m}", Operation{"records.update", true, false, 1}},
	{"PUT", "{m}/*", Operation{"records.update", true, false, 1}},
	{"PATCH", "{m}", Operation{"records.update", true, false, 1}},
	{"PATCH", "{m}/*", Operation{"records.update", true, false, 1}},
	{"DELETE", "{m}", Operation{"records.delete", true, false, 1}},
	{"DELETE", "{m}/*", Operation{"records.delete", true, false, 1}},
	{"GET", "{m}/*/*", Operation{"related.list", true, false, 1}},
}

// other is the Name of what no row fits.
const other = "other"

// reservedSegments are first segments that name no module, besides those
// beginning with two underscores.
var reservedSegments = []string{"settings", "users", "org", "files", "actions", "functions", "coql", "upload", "backup", "features"}

// Class is what an operation does, in a word that fits a dashboard: the method
// and the class of a request together are few.
type Class struct {
	Name string
	// Methods are those that operations of the class have.
	Methods []string
}

// classes are the words of Operation.Class by the operation's name. A name
// that isn't here is of the class "read".
var classes = map[string]string{
	"records.insert": "insert", "records.update": "update", "records.upsert": "upsert",
	"records.merge": "update", "records.tag": "update", "records.action": "update", "module.create": other,
	"records.delete": "delete", "records.mass_delete": "delete",
	"leads.convert": "convert", "leads.mass_convert": "convert",
	"bulk.read": "bulk", "bulk.write": "bulk", "bulk.result": "bulk", "bulk.status": "bulk",
	"upload": "file", "download": "file",
	"function": "function", "composite": "composite", "mail.send": "mail", "mail.merge": "mail", other: other,
}

// Class returns the operation's class, one of Classes.
func (o Operation) Class() string {
	if class, ok := classes[o.Name]; ok {
		return class
	}
	return "read"
}

// OfRecords reports whether the operation writes records of a module: Zoho answers
// it with what became of each of them.
func (o Operation) OfRecords() bool {
	switch o.Name {
	case "records.insert", "records.update", "records.upsert", "records.delete":
		return true
	}
	return false
}

// Classes returns the closed list of classes with their methods.
func Classes() []Class {
	all := []string{"GET", "POST", "PUT", "PATCH", "DELETE"}
	list := []Class{{Name: other, Methods: all}}
	for _, r := range rows {
		methods := []string{r.method}
		if r.method == "" {
			methods = all
		}
		i := slices.IndexFunc(list, func(c Class) bool { return c.Name == r.Class() })
		if i < 0 {
			i, list = len(list), append(list, Class{Name: r.Class()})
		}
		for _, method := range methods {
			if !slices.Contains(list[i].Methods, method) {
				list[i].Methods = append(list[i].Methods, method)
			}
		}
	}
	return list
}

// OperationOf returns the operation of a method and an escaped path. What isn't
// in the table is "other", repeatable unless it is a POST.
func OperationOf(method, path string) Operation {
	rest, ok := strings.CutPrefix(path, "/crm/")
	bulk := false
	if ok {
		rest, bulk = strings.CutPrefix(rest, "bulk/")
		var version string
		version, rest, ok = strings.Cut(rest, "/")
		ok = ok && len(version) > 1 && version[0] == 'v' && version[1] >= '0' && version[1] <= '9'
	}
	if ok {
		if r := match(method, rest, bulk); r != nil {
			return r.Operation
		}
	}
	safe := method == "GET" || method == "PUT" || method == "PATCH" || method == "DELETE"
	return Operation{Name: other, Repeatable: safe, Credits: 1}
}

// Refused reports whether the answer to a call of the operation is a refusal at
// the door: 401 and 429 come before anything is carried out (zoho-facts 3.5). A
// function sets the status of its own answer, so there Zoho's code has to say it.
func (o Operation) Refused(a *Answer) bool {
	switch {
	case a.Status != 401 && a.Status != 429:
		return false
	case o.Name != "function":
		return true
	}
	return a.Status == 429 && a.Code == "TOO_MANY_REQUESTS" || a.Status == 401 && (a.Code == "OAUTH_SCOPE_MISMATCH" || a.TokenRefused())
}

// MayRepeat reports whether r, a request of the operation, can be sent twice
// without doing more than once.
// Besides what the table says, that is
//   - an insert with a unique_field, which Decode has seen hold the request's id in
//     its one record, so that a repetition is refused with DUPLICATE_DATA (zoho-facts 6);
//   - an upsert with duplicate_check_fields, each record of which has a value
//     for one of them, so that a repetition finds the record and updates it.
//
// An update, of an upsert too, is none where it holds rows of a subform without an
// id: each sending appends them (zoho-facts 4.2).
// In doubt it says no: then the request is claimed and sent once.
func (o Operation) MayRepeat(r *envelope.Request) bool {
	switch {
	case o.Repeatable:
		return r.Method != "PUT" && r.Method != "PATCH" || !addsRows(&r.Body)
	case r.Body.Kind != envelope.JSONBody:
		return false
	case o.Name == "records.insert":
		return r.UniqueField != ""
	case o.Name == "records.upsert":
		return checksDuplicates(r.Body.Data) && !addsRows(&r.Body)
	}
	return false
}

// addsRows reports whether an update with this body may add rows to its records.
func addsRows(b *envelope.Body) bool {
	switch b.Kind {
	case envelope.NoBody:
		return false
	case envelope.JSONBody:
		return envelope.AddsRows(b.Data)
	}
	return true // nobody looks into it
}

// checksDuplicates reports whether the upsert in body looks for duplicates in fields of
// which each of its records has one. A name that comes twice counts for none: Zoho might
// see the other one.
func checksDuplicates(body []byte) bool {
	named, times := envelope.Member(body, "duplicate_check_fields")
	var fields []string
	if times != 1 || json.Unmarshal(named, &fields) != nil || len(fields) == 0 {
		return false
	}
	batch, ok := envelope.SplitRecords(body)
	if !ok || len(batch.Records) == 0 {
		return false
	}
	for _, record := range batch.Records {
		if !slices.ContainsFunc(fields, func(field string) bool {
			value, times := envelope.Member(record, field)
			return times == 1 && hasValue(value)
		}) {
			return false
		}
	}
	return true
}

// longestChecked is how many characters of a value Zoho is known to keep. What is
// longer may be cut when it is stored, and is compared uncut, so that a second
// sending doesn't find it (zoho-facts 6).
const longestChecked = 100

// hasValue reports whether raw is a number, or a JSON string that isn't blank and
// not too long to be found again.
func hasValue(raw json.RawMessage) bool {
	if len(raw) == 0 {
		return false
	}
	if raw[0] == '"' {
		s := text(raw)
		return strings.TrimSpace(s) != "" && utf8.RuneCountInString(s) <= longestChecked
	}
	return raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9'
}

// DuplicateOf recognises the body of a 400 that refuses one record because
// field, by its API name, holds a value that another record has already, and
// returns that record's id (zoho-facts 4.1). For a request whose unique field
// carries its own id this proves that an earlier sending of it arrived.
func DuplicateOf(body []byte, field string) (id string, ok bool) {
	var answer struct {
		Data []json.RawMessage `json:"data"`
	}
	if field == "" || json.Unmarshal(body, &answer) != nil || len(answer.Data) != 1 {
		return "", false
	}
	return Duplicate(answer.Data[0], field)
}

// Duplicate is DuplicateOf for what Zoho says of one record.
func Duplicate(record json.RawMessage, field string) (id string, ok bool) {
	var r refusal
	if field == "" || json.Unmarshal(record, &r) != nil {
		return "", false
	}
	if r.Code != "MULTIPLE_OR_MULTI_ERRORS" || r.Status != "error" {
		return r.duplicate(field)
	}
	// A record with more than one duplicate value has one of these for each.
	for _, raw := range r.Details.Errors {
		var one refusal
		if json.Unmarshal(raw, &one) == nil {
			if id, ok := one.duplicate(field); ok {
				return id, true
			}
		}
	}
	return "", false
}

// refusal is what Zoho says of a record that it didn't write.
type refusal struct {
	Code    string `json:"code"`
	Status  string `json:"status"`
	Details struct {
		APIName   string          `json:"api_name"`
		ID        json.RawMessage `json:"id"`
		Duplicate struct {
			ID json.RawMessage `json:"id"`
		} `json:"duplicate_record"`
		Errors []json.RawMessage `json:"errors"`
	} `json:"details"`
}

// duplicate is the id of the record that has the same value in field.
func (r *refusal) duplicate(field string) (id string, ok bool) {
	d := &r.Details
	if r.Code != "DUPLICATE_DATA" || r.Status != "error" || d.APIName != field {
		return "", false
	}
	id, within := text(d.ID), text(d.Duplicate.ID)
	if id == "" {
		id = within
	}
	if id == "" || within != "" && within != id || strings.Trim(id, "0123456789") != "" {
		return "", false
	}
	return id, true
}
