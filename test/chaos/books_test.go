package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zoho-worker/internal/consumer"
	"zoho-worker/internal/dead"
	"zoho-worker/internal/envelope"
	"zoho-worker/internal/zoho/zohotest"
)

// patience bounds the time after the last fault until everything is answered:
// a queue that was throttled again and again pauses for a minute.
const patience = 150 * time.Second

// books are what a run comes to.
type books struct {
	*load
	caused  map[string]int
	ownEnds []string // how workers ended by themselves

	answered, unknown, late, refused, convicted, confirmed, mints, expiries, asked int
	lost, doubled, wrong                                                           []string
	drained                                                                        time.Duration
}

func (b *books) fault(list *[]string, format string, args ...any) {
	*list = append(*list, fmt.Sprintf(format, args...))
}

// balance checks the invariants, once the streams are drained.
func (b *books) balance(responses map[string][]byte, written uint64) {
	if responses == nil {
		return // they can't be read, and drain has said so: that is no word on what is stored
	}
	if n := uint64(len(responses)); n != written {
		b.fault(&b.wrong, "I2: %d responses are stored, and %d were written: one was replaced", n, written)
	}
	calls := b.zoho.Calls()
	records := map[string]map[string]any{} // by id
	byKey := map[string]int{}              // inserted records by request
	for org := range b.seeds {
		for _, r := range b.zoho.Records(org, "Leads") {
			records[fmt.Sprint(r["id"])] = r
			if name, ok := strings.CutPrefix(fmt.Sprint(r["Last_Name"]), "Record "); ok {
				byKey[name]++
			}
		}
	}
	ofRequest := map[string][]zohotest.Call{}
	for _, c := range calls {
		if key := keyOf(c); key != "" {
			ofRequest[key] = append(ofRequest[key], c)
		}
	}
	for id, n := range byKey {
		if n > 1 {
			b.fault(&b.doubled, "I1: %s was inserted %d times", id, n)
		}
		if b.requests[id] == nil {
			b.fault(&b.wrong, "I3: %s was inserted, and nobody asked for it", id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(b.requests)) {
		b.check(b.requests[id], responses[id], ofRequest[id], byKey[id], records)
	}
	b.letters(responses)
	b.tokens(calls)
	b.secrets(responses)
	b.leaks()
}

// check checks one request: I1 to I4.
func (b *books) check(q *request, stored []byte, calls []zohotest.Call, inserted int, records map[string]map[string]any) {
	replies := b.repliesTo(q.id)
	if q.asked {
		b.asked++
	}
	data := stored
	switch {
	case q.fleeting() && len(replies) == 0:
		b.fault(&b.lost, "I2: no reply to %s", q.id)
		return
	case q.fleeting():
		data = replies[0]
		if stored != nil && !bytes.Equal(stored, data) && decodes(stored) {
			// An error may be stored; reads are answered again otherwise.
			data = stored
		}
	case stored == nil:
		b.fault(&b.lost, "I2: no stored response to %s", q.id)
		return
	default:
		for _, reply := range replies {
			if !bytes.Equal(reply, stored) {
				b.fault(&b.doubled, "I2: %s got the reply\n%s\nand the stored response is\n%s", q.id, reply, stored)
			}
		}
	}
	b.answered++
	r, err := envelope.DecodeResponse(data)
	if err != nil {
		b.fault(&b.wrong, "I2: the response to %s: %v in %s", q.id, err, data)
		return
	}
	for _, c := range calls {
		if c.OrgID != "" && c.OrgID != q.org || c.UserID != "" && c.UserID != "user-of-"+q.tenant {
			b.fault(&b.wrong, "I7: %s of %s was sent with the token of %s", q.id, q.tenant, c.UserID)
		}
	}
	code := envelope.Code("")
	if r.Error != nil {
		code = r.Error.Code
	}
	switch {
	case code == envelope.OutcomeUnknown:
		b.unknown++
		// Where a second token is refused, too, neither a lookup nor a repetition tells.
		if (q.method != "POST" || q.unique || q.probed && !q.hurried) && unauthorized(calls) < 2 {
			b.fault(&b.wrong, "I4: %s can be repeated, and is answered outcome_unknown", q.id)
		}
		if !b.explained(q, r, calls) {
			b.fault(&b.wrong, "I4: %s is answered outcome_unknown, and no fault was near: %s", q.id, data)
		}
	case code == envelope.DeadlineExceeded, code == envelope.ReauthorizationRequired:
		b.late++
		if !q.hurried {
			b.fault(&b.wrong, "%s is answered %s and had %s", q.id, code, longest)
		}
		if q.method == "POST" && !q.unique && inserted > 0 {
			b.fault(&b.wrong, "I3: %s was inserted, and is answered %s", q.id, code)
		}
	case code == envelope.RetriesExhausted && struck(calls) >= 5:
	case code == envelope.Internal && b.deathsWithin(q.published, r.FinishedAt) >= 4:
		b.convicted++
	case r.Status == 401 && r.Attempts > 1 && code == "" && unauthorized(calls) > 1:
		// The second token was refused, too: that is delivered.
		b.refused++
		if q.method == "POST" && inserted > 0 {
			b.fault(&b.wrong, "I3: %s was inserted, and is answered 401", q.id)
		}
	case code != "" || r.Status < 200 || r.Status > 299:
		b.fault(&b.wrong, "%s is answered %s", q.id, data)
	case q.method == "POST":
		if inserted != 1 {
			b.fault(&b.wrong, "I3: %s is answered %d and was inserted %d times", q.id, r.Status, inserted)
		}
		if r.Outcome == envelope.Confirmed {
			b.confirmed++
		}
		if got := records[recordIn(r)]; got == nil || got["Company"] != q.id {
			b.fault(&b.wrong, "I3: the response to %s names another record: %s", q.id, data)
		}
		b.executed(q, calls)
	case q.method == "PUT":
		b.executed(q, calls)
	}
}

// executed checks that what was carried out is what was asked for.
func (b *books) executed(q *request, calls []zohotest.Call) {
	n := 0
	for _, c := range calls {
		if !c.Applied {
			continue
		}
		n++
		if c.Method != q.method || c.Path != "/crm"+q.url || c.BodySHA256 != q.digest {
			b.fault(&b.wrong, "I3: %s was carried out as %s %s with another body", q.id, c.Method, c.Path)
		}
	}
	switch {
	case n == 0:
		b.fault(&b.wrong, "I3: %s is answered with success and was never carried out", q.id)
	case n > 1 && q.method == "POST":
		b.fault(&b.doubled, "I1: %s was carried out %d times", q.id, n)
	}
}

func struck(calls []zohotest.Call) (n int) {
	for _, c := range calls {
		if c.Fault != "" {
			n++
		}
	}
	return n
}

func unauthorized(calls []zohotest.Call) (n int) {
	for _, c := range calls {
		if c.Status == 401 {
			n++
		}
	}
	return n
}

func decodes(data []byte) bool {
	_, err := envelope.DecodeResponse(data)
	return err == nil
}

func recordIn(r *envelope.Response) string {
	var body struct {
		Data []struct {
			Details struct {
				ID string `json:"id"`
			} `json:"details"`
		} `json:"data"`
	}
	if json.Unmarshal(r.Body.Data, &body) != nil || len(body.Data) != 1 {
		return ""
	}
	return body.Data[0].Details.ID
}

// explained: a fault struck the call itself, or a worker, NATS, or the way to
// Zoho while the request was in hand.
func (b *books) explained(q *request, r *envelope.Response, calls []zohotest.Call) bool {
	if struck(calls) > 0 {
		return true
	}
	b.world.mu.Lock()
	defer b.world.mu.Unlock()
	for _, s := range b.spans {
		if (strings.Contains(s.kind, "worker") || strings.HasPrefix(s.kind, "NATS") || strings.HasPrefix(s.kind, "Zoho")) &&
			s.start.Before(r.FinishedAt.Add(time.Second+b.clockError())) && s.end.Add(callTimeout).After(q.published.Add(-time.Second)) {
			return true
		}
	}
	return false
}

func (b *books) repliesTo(id string) [][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.replies[id]
}

// deathsWithin is how many workers died between two instants, the clocks' error granted.
func (b *books) deathsWithin(from, to time.Time) (n int) {
	b.world.mu.Lock()
	defer b.world.mu.Unlock()
	for _, at := range b.deaths {
		if at.After(from.Add(-time.Second)) && at.Before(to.Add(time.Second+b.clockError())) {
			n++
		}
	}
	return n
}

// letters checks that nothing is set aside but what is answered internal.
func (b *books) letters(responses map[string][]byte) {
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	letters, err := dead.Open(ctx, b.js)
	if err != nil {
		b.fault(&b.wrong, "I5: %v", err)
		return
	}
	for letter, err := range letters.All(ctx, dead.Filter{}) {
		if err != nil {
			b.fault(&b.wrong, "I5: %v", err)
			return
		}
		var q struct{ ID string }
		_ = json.Unmarshal(letter.Data, &q) // one without an id has no response
		data := responses[q.ID]
		if replies := b.repliesTo(q.ID); data == nil && len(replies) > 0 {
			data = replies[0]
		}
		r, err := envelope.DecodeResponse(data)
		if err != nil || r.Error == nil || r.Error.Code != envelope.Internal {
			b.fault(&b.wrong, "I5: a dead letter of a request that is not answered internal: %s: %s", letter.Reason, letter.Data)
		}
	}
}

// drain waits until every request is off the stream and answered (I5), and
// returns the stored responses and how many were ever written.
func (b *books) drain() (map[string][]byte, uint64) {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	defer func() { b.drained = time.Since(begun) }()
	asked := false
	left := uint64(0) // when it was last told
	for {
		n, err := b.left(ctx)
		if err == nil {
			left = n
		}
		if err == nil && left == 0 {
			// A reply is lost with the NATS node that had it, or with the
			// requester's connection: whoever waits asks again.
			again := b.unreplied()
			if len(again) == 0 {
				break
			}
			if !asked {
				asked = true
				for _, q := range again {
					if b.disturbed(q) {
						q.asked = true
						b.publish(q)
					}
				}
				continue
			}
		}
		if ctx.Err() != nil {
			if left > 0 || err != nil {
				b.fault(&b.wrong, "I5: after %s %d messages are left on the stream (%v)", patience, left, err)
			}
			break // or replies are missing: check tells which
		}
		time.Sleep(250 * time.Millisecond)
	}
	responses, seq, err := b.stored()
	if err != nil {
		b.fault(&b.wrong, "I5: read the responses: %v", err)
	}
	return responses, seq
}

// replay publishes a share of what is answered once more, as a requester does
// that restarts: nothing may be carried out again, and the answers are the same.
func (b *books) replay() {
	b.mu.Lock()
	var all []*request
	for _, id := range slices.Sorted(maps.Keys(b.requests)) {
		if q := b.requests[id]; len(all) < mostReplays && !q.fleeting() && len(id)%3 == 0 {
			all = append(all, q)
		}
	}
	b.mu.Unlock()
	for _, q := range all {
		b.publish(q)
	}
}

const mostReplays = 200

// disturbed: a NATS node went down since the request was published.
func (b *books) disturbed(q *request) bool {
	b.world.mu.Lock()
	defer b.world.mu.Unlock()
	return len(b.disrupt) > 0 && b.disrupt[len(b.disrupt)-1].Add(5*time.Second).After(q.published)
}

func (b *books) unreplied() (all []*request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.requests {
		if q.fleeting() && len(b.replies[q.id]) == 0 {
			all = append(all, q)
		}
	}
	return all
}

// left is what is on the stream that should be empty.
func (b *books) left(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	stream, err := b.js.Stream(ctx, consumer.RequestStream)
	if err != nil {
		return 0, err
	}
	n := stream.CachedInfo().State.Msgs
	consumers := stream.ListConsumers(ctx)
	for info := range consumers.Info() {
		n += uint64(info.NumAckPending) + info.NumPending
	}
	return n, consumers.Err()
}

// stored reads the responses. A stream that has no leader yet, and a consumer
// whose node went down, are tried again: what isn't read isn't lost.
func (b *books) stored() (map[string][]byte, uint64, error) {
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	for {
		all, twice, last, err := readResponses(ctx, b.js)
		if err == nil {
			for _, id := range twice {
				b.fault(&b.doubled, "I2: two responses to %s are stored", id)
			}
			return all, last, nil
		}
		if ctx.Err() != nil {
			return nil, 0, err
		}
		time.Sleep(250 * time.Millisecond)
	}
}

// readResponses reads all responses once, by id, with the ids that are there
// twice and how many were ever written.
func readResponses(ctx context.Context, js jetstream.JetStream) (all map[string][]byte, twice []string, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	asking, asked := context.WithTimeout(ctx, 5*time.Second) // without a leader nobody answers
	defer asked()
	stream, err := js.Stream(asking, consumer.ResponseStream)
	if err != nil {
		return nil, nil, 0, err
	}
	state := stream.CachedInfo().State
	all = map[string][]byte{}
	ordered, err := stream.OrderedConsumer(asking, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, nil, 0, err
	}
	for n := uint64(0); n < state.Msgs; {
		batch, err := ordered.Fetch(500, jetstream.FetchMaxWait(2*time.Second))
		if err != nil {
			return nil, nil, 0, err
		}
		for m := range batch.Messages() {
			n++
			id := m.Subject()[strings.LastIndexByte(m.Subject(), '.')+1:]
			if all[id] != nil {
				twice = append(twice, id)
			}
			all[id] = m.Data()
		}
		if err := batch.Error(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return nil, nil, 0, err
		}
		if ctx.Err() != nil {
			return nil, nil, 0, fmt.Errorf("%d of %d responses: %w", n, state.Msgs, ctx.Err())
		}
	}
	return all, twice, state.LastSeq, nil
}

// tokens checks I6: no grant asked for more tokens than Zoho allows, and none
// minted without a reason.
func (b *books) tokens(calls []zohotest.Call) {
	const budget = 10 // zoho-facts 1.6, in ten minutes; a grant of a run lives for less, or for so few expiries
	asked, refused := map[string]int{}, map[string]int{}
	for _, c := range calls {
		switch {
		case c.Endpoint == zohotest.API && c.Fault == "401 INVALID_TOKEN":
			b.expiries++
		case c.Endpoint != zohotest.Token || c.GrantType != "refresh_token":
		case c.Code == "minted":
			b.mints++
			asked[c.Grant]++
		default:
			asked[c.Grant]++
			if c.Code == "Access Denied" && c.Fault == "" {
				refused[c.Grant]++
			}
		}
	}
	for grant, n := range asked {
		if n > budget {
			b.fault(&b.wrong, "I6: %s was refreshed %d times, and Zoho allows %d", grant, n, budget)
		}
	}
	for grant, n := range refused {
		b.fault(&b.wrong, "I6: Zoho itself refused %d refreshes of %s", n, grant)
	}
	b.world.mu.Lock()
	defer b.world.mu.Unlock()
	for _, n := range b.expired {
		b.expiries += n
	}
	b.expiries += len(tenants)
	for _, n := range []string{"token endpoint throttle", "token endpoint throttle, 200", "grant revoked, re-authorized"} {
		b.expiries += b.caused[n]
	}
	// One refresh per expiry, two where the worker that claimed it dies.
	if b.mints > 2*b.expiries {
		b.fault(&b.wrong, "I6: %d tokens were minted, and there were %d reasons to", b.mints, b.expiries)
	}
}

// secrets checks I8 on the workers' logs and the responses.
func (b *books) secrets(responses map[string][]byte) {
	planted := append(b.zoho.Secrets(), clientSecret)
	_, key, _ := strings.Cut(b.keys.Reveal(), ":")
	planted = append(planted, key)
	look := func(where string, data []byte) {
		for _, s := range planted {
			if s != "" && bytes.Contains(data, []byte(s)) {
				b.fault(&b.wrong, "I8: a secret is in %s", where)
				return
			}
		}
	}
	for id, data := range responses {
		look("the response to "+id, data)
	}
	logs, _ := filepath.Glob(filepath.Join(b.dir, "worker-*.log"))
	for _, name := range logs {
		data, err := os.ReadFile(name)
		if err != nil {
			b.fault(&b.wrong, "I8: %v", err)
		}
		look(filepath.Base(name), data)
	}
}

// mostFiles is what an idle worker may have open: its binary's own, NATS,
// Redis, and the connections to Zoho that are kept for the next call.
const mostFiles = 64

// leaks checks I9 on the workers that are left, and that they stop.
func (b *books) leaks() {
	for _, p := range b.workers {
		if n, err := p.files(); err == nil && n > mostFiles {
			b.fault(&b.wrong, "I9: %s has %d files open at rest", p.name, n)
		}
	}
	for _, p := range b.workers {
		if err := p.terminate(stopTimeout + 5*time.Second); err != nil {
			b.fault(&b.wrong, "I9: %v", err)
		}
	}
}
