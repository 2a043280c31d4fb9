package integration

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/envelope"
)

// bodies opens the store of large bodies, as a caller does whose account imports it.
func bodies(t *testing.T, nc *nats.Conn) jetstream.ObjectStore {
	t.Helper()
	js, err := jetstream.NewWithAPIPrefix(nc, "BODIES.API")
	if err != nil {
		t.Fatal(err)
	}
	store, err := js.ObjectStore(t.Context(), "ZOHO_BODIES")
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// putLarge puts a lead that no message could hold.
func putLarge(t *testing.T, store jetstream.ObjectStore, object, lastName string) *jetstream.ObjectInfo {
	t.Helper()
	info, err := store.PutBytes(t.Context(), object, []byte(`{"data":[{"Last_Name":"`+lastName+`","Description":"`+strings.Repeat("x", 1<<20)+`"}]}`))
	if err != nil {
		t.Fatalf("put %s: %v", object, err)
	}
	return info
}

// post publishes a request whose body is an object, and returns the response.
func (s *secureRig) post(nc *nats.Conn, connection, id, object string) *envelope.Response {
	s.t.Helper()
	acknowledged(s.t, nc, "zoho.requests."+connection, doc{"id": id, "method": "POST", "url": "/v8/Leads", "body_object": object, "headers": doc{"Content-Type": "application/json"}})
	return s.await(connection, id)
}

// lastNames are those of the leads that an org has, sorted.
func (s *secureRig) lastNames(org string) string {
	var names []string
	for _, record := range s.Zoho.Records(org, "Leads") {
		names = append(names, fmt.Sprint(record["Last_Name"]))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// sharing has ACME import the store of large bodies as GLOBEX does.
func sharing(t *testing.T, accounts string) string {
	t.Helper()
	begin, own := strings.Index(accounts, `      { service: { account: ZOHO, subject: "$JS.API.STREAM.INFO.OBJ_ZOHO_BODIES" },`), `      { stream: { account: ZOHO, subject: "_INBOX.acme.>" } }`
	if begin < 0 || !strings.Contains(accounts, own) {
		t.Fatal("the shipped accounts have no imports of bodies to copy")
	}
	imports, _, _ := strings.Cut(accounts[begin:], "    ]\n")
	return strings.Replace(accounts, own, own+"\n"+imports, 1)
}

// The one caller whose account imports the store of large bodies puts them there, has
// them sent, and gets at nothing else of JetStream's.
func TestCallerPutsBodies(t *testing.T) {
	t.Parallel()
	s := callersRig(t)
	s.worker(s.as("worker"))
	globex, _ := s.caller("globex")
	store := bodies(t, globex)
	putLarge(t, store, "globex/leads.json", "First")
	wantStatus(t, s.post(globex, "globex", "first", "globex/leads.json"), 201)
	putLarge(t, store, "globex/leads.json", "Second") // in place of the other
	wantStatus(t, s.post(globex, "globex", "second", "globex/leads.json"), 201)
	putLarge(t, store, "acme/leads.json", "Third")
	wantCode(t, s.post(globex, "globex", "third", "acme/leads.json"), envelope.InvalidRequest, "body_object: must begin with globex/")
	if got := s.lastNames("770000002"); got != "First, Second, of globex" {
		t.Errorf("globex's org has %s", got)
	}

	// The chunks are not read, nothing is purged by JetStream's API, and no other stream
	// is reached: neither by the prefix nor without it, by neither caller.
	acme, _ := s.caller("acme")
	inside := listen(t, s.nc, "$JS.API.>", "$O.>", "zoho.>")
	const mark = "an attack"
	for name, nc := range map[string]*nats.Conn{"globex": globex, "acme": acme} {
		subjects := []string{"$O.ZOHO_BODIES.X.x", "$O.ZOHO_BODIES.C.x.y", "$O.OTHER.C.x", "$O.OTHER.M.x"}
		calls := []string{
			"INFO", "STREAM.NAMES", "STREAM.INFO.ZOHO_REQUESTS", "STREAM.INFO.*", "STREAM.UPDATE.OBJ_ZOHO_BODIES", "STREAM.DELETE.OBJ_ZOHO_BODIES",
			"STREAM.PURGE.OBJ_ZOHO_BODIES", "STREAM.MSG.GET.OBJ_ZOHO_BODIES", "STREAM.MSG.DELETE.OBJ_ZOHO_BODIES", "STREAM.SNAPSHOT.OBJ_ZOHO_BODIES",
			"DIRECT.GET.OBJ_ZOHO_BODIES", "DIRECT.GET.OBJ_ZOHO_BODIES.$O.ZOHO_BODIES.C.x", "DIRECT.GET.OBJ_ZOHO_BODIES.$O.ZOHO_BODIES.C.*", "DIRECT.GET.OBJ_ZOHO_BODIES.$O.>",
			"DIRECT.GET.ZOHO_RESPONSES.zoho.responses.acme.x", "CONSUMER.CREATE.OBJ_ZOHO_BODIES.x", "CONSUMER.CREATE.OBJ_ZOHO_BODIES.x.$O.ZOHO_BODIES.C.x",
		}
		if name == "acme" {
			subjects = append(subjects, "$O.ZOHO_BODIES.C.x", "$O.ZOHO_BODIES.M.x")
			calls = append(calls, "STREAM.INFO.OBJ_ZOHO_BODIES", "DIRECT.GET.OBJ_ZOHO_BODIES.$O.ZOHO_BODIES.M.x")
		}
		for _, call := range calls {
			subjects = append(subjects, "$JS.API."+call, "BODIES.API."+call)
		}
		for _, subject := range subjects {
			answer, err := nc.Request(subject, []byte(`{"mark":"`+mark+`"}`), 300*time.Millisecond)
			if err == nil && !bytes.Contains(answer.Data, []byte(`"err_code":10039`)) && !bytes.Contains(answer.Data, []byte(`"err_code":10025`)) {
				t.Errorf("%s answers %s: %s", subject, name, answer.Data)
			}
		}
	}
	if through := inside.find(func(m *nats.Msg) bool { return bytes.Contains(m.Data, []byte(mark)) }); len(through) > 0 {
		t.Errorf("a caller reached %s", through[0].Subject)
	}
	// An account that the exports don't name can't import them: NATS takes no such file.
	shipped, err := os.ReadFile("../../deploy/nats/accounts.conf")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "accounts.conf")
	if err := os.WriteFile(file, []byte(sharing(t, string(shipped))), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := server.ProcessConfigFile(file); err == nil || !strings.Contains(err.Error(), "import not authorized") {
		t.Errorf("acme imports what is exported to globex: %v", err)
	}
}

// Why one caller puts large bodies and not each: who shares the store can do all of
// this to the others. Should one of these no longer go, docs/security.md says too much.
func TestCallersWhoShareBodies(t *testing.T) {
	t.Parallel()
	s := callersRig(t)
	with := func(accounts string) string {
		return strings.ReplaceAll(sharing(t, accounts), "accounts: [GLOBEX]", "accounts: [GLOBEX, ACME]")
	}
	s.reload(with)
	s.worker(s.as("worker"))
	acme, _ := s.caller("acme")
	globex, _ := s.caller("globex")
	theirs, store := bodies(t, acme), bodies(t, globex)
	put := putLarge(t, theirs, "acme/leads.json", "Secret of acme")

	// See names, sizes and digests.
	msg, err := globex.Request("BODIES.API.DIRECT.GET.OBJ_ZOHO_BODIES.$O.ZOHO_BODIES.M.*", nil, patience)
	if err != nil {
		t.Fatal(err)
	}
	var seen jetstream.ObjectInfo
	if err := json.Unmarshal(msg.Data, &seen); err != nil || seen.Name != "acme/leads.json" || seen.Size != put.Size || seen.Digest != put.Digest {
		t.Errorf("globex sees %s, %v", msg.Data, err)
	}
	// Have the content sent to an org of its own: by a description with another name.
	seen.Name = "globex/copy"
	data, err := json.Marshal(seen)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := globex.Request("$O.ZOHO_BODIES.M."+base64.URLEncoding.EncodeToString([]byte(seen.Name)), data, patience); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, s.post(globex, "globex", "copy", "globex/copy"), 201)
	if got := s.lastNames("770000002"); got != "Secret of acme, of globex" {
		t.Errorf("globex's org has %s", got)
	}
	// Replace what another is about to have sent.
	putLarge(t, store, "acme/leads.json", "Forged")
	wantStatus(t, s.post(acme, "acme", "forged", "acme/leads.json"), 201)
	if got := s.lastNames("770000001"); got != "Forged, of acme" {
		t.Errorf("acme's org has %s", got)
	}
	// Remove one object, and by one header all of them.
	_ = store.Delete(t.Context(), "acme/leads.json") // the chunks stay: to purge is not exported
	wantCode(t, s.post(acme, "acme", "removed", "acme/leads.json"), envelope.InvalidRequest, "body_object: there is no such object")
	putLarge(t, theirs, "acme/more.json", "More")
	all := nats.NewMsg("$O.ZOHO_BODIES.C.x")
	all.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupAll)
	if _, err := globex.RequestMsg(all, patience); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.post(acme, "acme", "purged", "acme/more.json"), envelope.InvalidRequest, "body_object: there is no such object")
}
