package zohotest

import (
	"archive/zip"
	"bytes"
	"encoding/csv"
	"net/http"
	"strings"
)

// job is a bulk job. It has done its work when it is made; only its state takes a poll to tell.
type job struct {
	id     string
	polled bool
	result []byte // a ZIP
	module string
	rows   int
	body   any // details as the caller gave them
}

// bulk answers what is under /crm/bulk/v<N>/: bulk read whole, bulk write as far as
// making and polling jobs goes. backup and others are unknown paths.
func (x *exchange) bulk(rest []string) *result {
	if rest[0] != "read" && rest[0] != "write" || len(rest) > 3 || len(rest) == 3 && rest[2] != "result" {
		return noSuchURL()
	}
	method, verb := http.MethodGet, "READ"
	if len(rest) == 1 {
		method, verb = http.MethodPost, "CREATE"
	}
	if x.call.Method != method {
		return wrongMethod()
	}
	if !x.access.grant.allows("ZohoCRM", "bulk."+rest[0]+"."+verb) {
		return scopeMismatch()
	}
	if len(rest) == 1 {
		return x.newJob(rest[0])
	}
	x.org.mu.Lock()
	defer x.org.mu.Unlock()
	j := x.org.jobs[rest[1]]
	if j == nil {
		return fail(http.StatusBadRequest, "RESOURCE_NOT_FOUND", "The requested resource is not found", nil)
	}
	if len(rest) == 3 {
		return x.result(j)
	}
	state := "COMPLETED"
	if !j.polled {
		state, j.polled = "IN PROGRESS", true
	}
	if rest[0] == "write" {
		return reply(http.StatusOK, "", params{"id": j.id, "status": state, "operation": "insert", "result": params{
			"download_url": "https://download-accl.zoho.com/v2/crm/" + x.org.ID + "/bulk-write/" + j.id + "/" + j.id + ".zip",
		}})
	}
	row := params{"id": j.id, "operation": "read", "state": state, "query": j.body, "created_by": x.user.ref()}
	if state == "COMPLETED" {
		row["result"] = params{
			"page": 1, "per_page": 200_000, "count": j.rows, "more_records": false,
			"download_url": "/crm/bulk/v" + itoa(x.version) + "/read/" + j.id + "/result",
		}
	}
	return reply(http.StatusOK, "", params{"data": []any{row}})
}

// result gives the ZIP of a bulk read.
func (x *exchange) result(j *job) *result {
	if res := x.download(); res != nil {
		return res
	}
	return &result{Answer: Answer{Status: http.StatusOK, Body: j.result, Header: http.Header{
		"Content-Type": {"application/zip"}, "Content-Disposition": {"attachment; filename=" + j.id + ".zip"},
	}}}
}

func (x *exchange) newJob(kind string) *result {
	var body map[string]any
	if err := decode(x.body, &body); err != nil {
		return notJSON()
	}
	j := &job{id: x.s.newID()}
	if kind == "read" {
		q, _ := body["query"].(map[string]any)
		switch m := q["module"].(type) {
		case map[string]any:
			j.module, _ = m["api_name"].(string)
		case string:
			j.module = m
		}
		if j.module == "" {
			return fail(http.StatusBadRequest, "MANDATORY_NOT_FOUND", "required field not found", params{"api_name": "module"})
		}
		j.body = q
		var names []string
		if list, ok := q["fields"].([]any); ok {
			for _, f := range list {
				names = append(names, canonicalName(f))
			}
		}
		j.result, j.rows = x.export(j.module, names)
	}
	x.org.mu.Lock()
	x.org.jobs[j.id] = j
	x.org.mu.Unlock()
	details := params{"id": j.id, "operation": kind, "state": "ADDED", "created_by": x.user.ref(), "created_time": stamp(x.s.now())}
	message := "Added successfully."
	var answer any = params{"data": []any{params{"status": "success", "code": "ADDED_SUCCESSFULLY", "message": message, "details": details}}, "info": params{}}
	if kind == "write" {
		answer = params{"status": "success", "code": "SUCCESS", "message": "success", "details": params{"id": j.id, "created_by": x.user.ref()}}
	}
	res := reply(http.StatusCreated, "ADDED_SUCCESSFULLY", answer)
	res.applied, res.ids = true, []string{j.id}
	return res
}

func canonicalName(v any) string {
	s, _ := v.(string)
	return s
}

// export makes a ZIP with one CSV of a module.
func (x *exchange) export(name string, fields []string) ([]byte, int) {
	rows := x.all(name, func(*record) bool { return true })
	if len(fields) == 0 {
		fields = []string{"id", "Created_Time", "Modified_Time"}
	}
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	f, _ := z.Create(name + ".csv") // writing to memory can't fail
	w := csv.NewWriter(f)
	_ = w.Write(fields)
	for _, r := range rows {
		line := make([]string, len(fields))
		for i, name := range fields {
			if s, ok := field(r.fields, name).(string); ok {
				line[i] = s
			} else {
				line[i] = canonical(field(r.fields, name))
			}
		}
		_ = w.Write(line)
	}
	w.Flush()
	_ = z.Close()
	return buf.Bytes(), len(rows)
}

// upload takes the ZIP of a bulk write: multipart, field "file".
func (x *exchange) upload() *result {
	if !x.access.grant.allows("ZohoFiles", "files.CREATE") {
		return scopeMismatch()
	}
	kind := x.r.Header.Get("Content-Type")
	_, boundary, ok := strings.Cut(kind, "boundary=")
	if !ok || !strings.HasPrefix(kind, "multipart/form-data") {
		return fail(http.StatusUnsupportedMediaType, "UNSUPPORTED_MEDIA_TYPE", "multipart/form-data is expected", nil)
	}
	if x.call.Header.Get("feature") == "" || x.call.Header.Get("X-CRM-ORG") != x.org.ID {
		return fail(http.StatusBadRequest, "INVALID_DATA", "the headers feature and X-CRM-ORG are required", nil)
	}
	for name, content := range parts(x.body, strings.Trim(boundary, `"`)) {
		if name == "file" && len(content) > 0 {
			id := x.s.newID()
			res := reply(http.StatusOK, "FILE_UPLOAD_SUCCESS", params{
				"status": "success", "code": "FILE_UPLOAD_SUCCESS", "message": "file uploaded.",
				"details": params{"file_id": id, "created_time": stamp(x.s.now())},
			})
			res.applied, res.ids = true, []string{id}
			return res
		}
	}
	return fail(http.StatusBadRequest, "MANDATORY_NOT_FOUND", "required field not found", params{"api_name": "file"})
}
