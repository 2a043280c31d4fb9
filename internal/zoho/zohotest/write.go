package zohotest

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxRecords is the most that a write may carry.
const maxRecords = 100

// outcome is what became of one record of a write.
type outcome struct {
	Code           string          `json:"code"`
	DuplicateField json.RawMessage `json:"duplicate_field,omitempty"` // upsert only: a name or null
	Action         string          `json:"action,omitempty"`          // upsert only
	Details        any             `json:"details"`
	Message        string          `json:"message"`
	Status         string          `json:"status"`

	id     string
	status int // of a call all of whose records have it; 0: like every other
}

// history is the details object of a written record.
type history struct {
	ModifiedTime any    `json:"Modified_Time"`
	ModifiedBy   any    `json:"Modified_By"`
	CreatedTime  any    `json:"Created_Time"`
	ID           string `json:"id"`
	CreatedBy    any    `json:"Created_By"`
	Approval     string `json:"$approval_state,omitempty"`
}

func success(r *record, message string) outcome {
	h := history{
		ModifiedTime: r.fields["Modified_Time"], ModifiedBy: short(r.fields["Modified_By"]),
		CreatedTime: r.fields["Created_Time"], ID: r.id, CreatedBy: short(r.fields["Created_By"]),
	}
	if message == "record added" {
		h.Approval = "approved"
	}
	return done(r.id, h, message)
}

// short is a user reference as write responses have it: without the email.
func short(ref any) any {
	m, ok := ref.(map[string]any)
	if !ok {
		return ref
	}
	return params{"name": m["name"], "id": m["id"]}
}

func done(id string, details any, message string) outcome {
	return outcome{Code: "SUCCESS", Details: details, Message: message, Status: "success", id: id}
}

func refusedRecord(code, message string, details any) outcome {
	return outcome{Code: code, Details: details, Message: message, Status: "error"}
}

// outcomes is the answer of a write: the records in the order of the request.
func outcomes(rows []outcome, success int) *result {
	res := &result{}
	good := 0
	for _, row := range rows {
		if row.Code == "SUCCESS" {
			good++
			res.ids = append(res.ids, row.id)
		}
	}
	res.applied = good > 0
	res.Status = written(good, len(rows)-good, success)
	if len(rows) > 0 {
		res.code = rows[0].Code
	}
	if len(rows) > 0 && rows[0].status != 0 && !slices.ContainsFunc(rows, func(o outcome) bool { return o.status != rows[0].status }) {
		res.Status = rows[0].status
	}
	res.Body = encode(params{"data": rows})
	return res
}

// batch reads the body of a write: {"data":[…], …}.
func (x *exchange) batch() (rows []any, body map[string]any, bad *result) {
	if err := decode(x.body, &body); err != nil {
		return nil, nil, notJSON()
	}
	data, ok := body["data"]
	if !ok {
		return nil, nil, fail(http.StatusBadRequest, "MANDATORY_NOT_FOUND", "required field not found", params{"api_name": "data", "json_path": "$.data"})
	}
	rows, ok = data.([]any)
	if !ok {
		return nil, nil, fail(http.StatusBadRequest, "INVALID_DATA", "invalid data", params{"expected_data_type": "jsonarray", "api_name": "data", "json_path": "$.data"})
	}
	switch n := len(rows); {
	case n == 0:
		return nil, nil, fail(http.StatusBadRequest, "INVALID_DATA", "invalid data", params{"maximum_length": maxRecords, "api_name": "data", "json_path": "$.data"})
	case n > maxRecords:
		return nil, nil, failOnce("LIMIT_EXCEEDED", "count of records in your request exceeds the limit", params{"maximum_length": maxRecords, "api_name": "data"})
	}
	return rows, body, nil
}

func (x *exchange) insert(name string) *result {
	rows, _, bad := x.batch()
	if bad != nil {
		return bad
	}
	x.org.mu.Lock()
	defer x.org.mu.Unlock()
	m, out := x.org.module(name), make([]outcome, len(rows))
	for i, row := range rows {
		out[i] = x.insertOne(m, row, i)
	}
	return outcomes(out, http.StatusCreated)
}

// refuse is what the call's fault does to one record.
func (x *exchange) refuse(row any) (o outcome, refused bool) {
	fields, _ := row.(map[string]any)
	if x.fault == nil || x.fault.refuse == nil {
		return o, false
	}
	code := x.fault.refuse(fields)
	return refusedRecord(code, "the record can't be written now", params{}), code != ""
}

func (x *exchange) insertOne(m *module, row any, i int) outcome {
	if o, refused := x.refuse(row); refused {
		return o
	}
	fields, bad := m.check(row, i, nil)
	if bad != nil {
		return *bad
	}
	for f, v := range fields {
		fields[f] = x.rows(f, nil, v)
	}
	r := newRecord(x.s.newID(), fields, x.user, x.s.now())
	m.add(r)
	return success(r, "record added")
}

func (x *exchange) updateOne(m *module, r *record, row any, i int) outcome {
	if o, refused := x.refuse(row); refused {
		return o
	}
	fields, bad := m.check(row, i, r)
	if bad != nil {
		return *bad
	}
	if since, err := parseTime(x.call.Header.Get("If-Unmodified-Since")); err == nil && r.modified.Truncate(time.Second).After(since) {
		o := refusedRecord("ALREADY_MODIFIED", "record updated time has already passed if-unmodified-since time", success(r, "").Details)
		o.status = http.StatusPreconditionFailed
		return o
	}
	now := x.s.now()
	all := maps.Clone(r.fields)
	for f, v := range fields {
		all[f] = x.rows(f, all[f], v)
	}
	all["id"], all["Modified_By"], all["Modified_Time"] = r.id, x.user.ref(), stamp(now)
	m.replace(r, all, now)
	return success(r, "record updated")
}

// rows is what a write makes of a field that has a value already. Since v3 the rows of
// a subform are changed or, with _delete, taken away by their ids, and those without
// one are added; none at all takes all away. Whatever isn't a subform is replaced.
func (x *exchange) rows(name string, there, given any) any {
	list, ok := given.([]any)
	if !ok || len(list) == 0 || name == "Tag" || x.version < 3 {
		return given
	}
	old, _ := there.([]any)
	now := slices.Clone(old)
	for _, v := range list {
		row, ok := v.(map[string]any)
		if !ok {
			return given
		}
		row = maps.Clone(row)
		id := canonical(row["id"])
		if id == "" {
			row["id"] = x.s.newID()
			now = append(now, row)
			continue
		}
		i := slices.IndexFunc(now, func(v any) bool { o, _ := v.(map[string]any); return canonical(o["id"]) == id })
		_, gone := row["_delete"]
		switch {
		case i < 0:
			now = append(now, row)
		case gone:
			now = slices.Delete(now, i, i+1)
		default:
			all := maps.Clone(now[i].(map[string]any))
			maps.Copy(all, row)
			now[i] = all
		}
	}
	return now
}

// check judges one record of a write; old is the record it updates.
func (m *module) check(row any, i int, old *record) (map[string]any, *outcome) {
	at := "$.data[" + strconv.Itoa(i) + "]"
	refuse := func(code, message string, details params) (map[string]any, *outcome) {
		o := refusedRecord(code, message, details)
		return nil, &o
	}
	fields, ok := row.(map[string]any)
	if !ok {
		return refuse("INVALID_DATA", "invalid data", params{"expected_data_type": "jsonobject", "json_path": at})
	}
	if old == nil {
		for _, f := range m.mandatory {
			if v := fields[f]; v == nil || v == "" {
				return refuse("MANDATORY_NOT_FOUND", "required field not found", params{"api_name": f, "json_path": at + "." + f})
			}
		}
	}
	for _, f := range slices.Sorted(maps.Keys(fields)) {
		if !valid(f, fields[f]) {
			return refuse("INVALID_DATA", "the field api name given seems to be invalid", params{"api_name": f, "json_path": at + "." + f})
		}
	}
	var duplicates []any
	for _, f := range m.unique {
		if dup := m.find(f, fields[f], old); dup != nil {
			owner, _ := dup.fields["Owner"].(map[string]any)
			duplicates = append(duplicates, refusedRecord("DUPLICATE_DATA", "duplicate data", params{
				"api_name": f, "json_path": at + "." + f, "id": dup.id, "more_records": false,
				"duplicate_record": params{"Owner": params{"name": owner["name"], "id": owner["id"], "zuid": owner["id"]}, "id": dup.id},
			}))
		}
	}
	switch len(duplicates) {
	case 0:
		return fields, nil
	case 1:
		o := duplicates[0].(outcome)
		return nil, &o
	}
	return refuse("MULTIPLE_OR_MULTI_ERRORS", "multiple errors occurred", params{"errors": duplicates})
}

// valid judges the few fields whose type everybody knows.
func valid(field string, v any) bool {
	s, text := v.(string)
	switch field {
	case "Email", "Secondary_Email":
		return v == nil || text && strings.Count(s, "@") == 1 && !strings.HasPrefix(s, "@") && !strings.HasSuffix(s, "@")
	case "First_Name", "Last_Name", "Company", "Deal_Name", "Subject", "Phone", "Mobile":
		return v == nil || text
	}
	return true
}

// systemFields are those an upsert looks for when it names none.
var systemFields = map[string]string{
	"Leads": "Email", "Contacts": "Email", "Accounts": "Account_Name", "Deals": "Deal_Name", "Products": "Product_Name",
	"Cases": "Subject", "Quotes": "Subject", "Sales_Orders": "Subject", "Purchase_Orders": "Subject", "Invoices": "Subject",
}

func (x *exchange) upsert(name string) *result {
	rows, body, bad := x.batch()
	if bad != nil {
		return bad
	}
	x.org.mu.Lock()
	defer x.org.mu.Unlock()
	m, out := x.org.module(name), make([]outcome, len(rows))
	var checks []string
	if named, ok := body["duplicate_check_fields"].([]any); ok {
		for _, f := range named {
			if s, ok := f.(string); ok {
				checks = append(checks, s)
			}
		}
	} else {
		if f := systemFields[name]; f != "" {
			checks = append(checks, f)
		}
		checks = append(checks, m.unique...)
	}
	for i, row := range rows {
		out[i] = x.upsertOne(m, row, i, checks)
	}
	return outcomes(out, http.StatusOK)
}

func (x *exchange) upsertOne(m *module, row any, i int, checks []string) outcome {
	fields, _ := row.(map[string]any)
	for _, f := range checks {
		if old := m.find(f, fields[f], nil); old != nil {
			o := x.updateOne(m, old, row, i)
			if o.Code == "SUCCESS" {
				o.DuplicateField, o.Action = encode(f), "update"
			}
			return o
		}
	}
	o := x.insertOne(m, row, i)
	if o.Code == "SUCCESS" {
		o.DuplicateField, o.Action = json.RawMessage("null"), "insert"
	}
	return o
}

// update is PUT of one record (id given) or of those that the body names.
func (x *exchange) update(name, id string) *result {
	rows, _, bad := x.batch()
	if bad != nil {
		return bad
	}
	if id != "" {
		rows = rows[:1]
	}
	x.org.mu.Lock()
	defer x.org.mu.Unlock()
	m, out := x.org.module(name), make([]outcome, len(rows))
	for i, row := range rows {
		which := id
		if id == "" {
			fields, _ := row.(map[string]any)
			which = canonical(fields["id"])
			if which == "" {
				out[i] = refusedRecord("MANDATORY_NOT_FOUND", "required field not found", params{"api_name": "id", "json_path": "$.data[" + strconv.Itoa(i) + "].id"})
				continue
			}
		}
		r := x.lookup(m, name, which)
		if r == nil {
			out[i] = refusedRecord("INVALID_DATA", "the id given seems to be invalid", params{"api_name": "id", "json_path": "$.data[" + strconv.Itoa(i) + "].id"})
			continue
		}
		out[i] = x.updateOne(m, r, row, i)
	}
	return outcomes(out, http.StatusOK)
}

// lookup finds a record by its id, or by an external field that the header
// X-EXTERNAL names. The org is locked for writing.
func (x *exchange) lookup(m *module, name, id string) *record {
	if field, ok := strings.CutPrefix(x.call.Header.Get("X-EXTERNAL"), name+"."); ok {
		return m.find(field, id, nil)
	}
	return m.byID[id]
}

// deleteOne is DELETE by the path, where a record that isn't there is no record of an
// answer but the answer itself.
func (x *exchange) deleteOne(name, id string) *result {
	if x.call.Header.Get("X-EXTERNAL") == "" && !recordID.MatchString(id) {
		return fail(http.StatusBadRequest, "INVALID_DATA", "invalid record id", params{"resource_path_index": 0})
	}
	res := x.delete(name, []string{id})
	if !res.applied {
		return fail(http.StatusBadRequest, "INVALID_DATA", "record not deleted", params{"resource_path_index": 1})
	}
	return res
}

func (x *exchange) deleteMany(name string, query url.Values) *result {
	if query.Get("ids") == "" {
		return missingParam("ids")
	}
	ids := strings.Split(query.Get("ids"), ",")
	if len(ids) > maxRecords {
		return fail(http.StatusBadRequest, "LIMIT_EXCEEDED", "only 100 records can be deleted at a time", params{"limit": maxRecords, "param_name": "ids"})
	}
	return x.delete(name, ids)
}

func (x *exchange) delete(name string, ids []string) *result {
	x.org.mu.Lock()
	defer x.org.mu.Unlock()
	m, out := x.org.module(name), make([]outcome, len(ids))
	for i, id := range ids {
		r := x.lookup(m, name, id)
		if r == nil {
			out[i] = refusedRecord("INVALID_DATA", "record not deleted", params{"id": id})
			continue
		}
		m.remove(r, x.user, x.s.now())
		out[i] = done(r.id, params{"id": r.id}, "record deleted")
	}
	return outcomes(out, http.StatusOK)
}

// parseTime reads the forms that Zoho's headers come in.
func parseTime(s string) (time.Time, error) {
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05-0700"} {
		if t, err := time.Parse(form, s); err == nil {
			return t, nil
		}
	}
	return http.ParseTime(s)
}
