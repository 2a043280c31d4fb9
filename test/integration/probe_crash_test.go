package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"zoho-worker/internal/envelope"
	"zoho-worker/internal/failpoint"
	"zoho-worker/internal/zoho/zohotest"
)

// A worker dies with a probed insert of two records in hand, at each step of its
// first sending, of the lookup and of its second one. Another worker gives the
// whole answer, and no record is there twice.
func TestCrashWithProbe(t *testing.T) {
	t.Parallel()
	lost := zohotest.CutRead(zohotest.Reset)
	partly := zohotest.RefuseRecords(func(fields map[string]any) string {
		if fields["External_Ref"] == "dead-001" {
			return "RECORD_LOCKED"
		}
		return ""
	})
	partly.Execute, partly.Cut = true, zohotest.Reset
	type round struct {
		name  string
		point string
		hold  *zohotest.Match
		stage zohotest.Stage
		fault *zohotest.Fault
		rig   *rig
	}
	lookup, sending := zohotest.Match{Path: "/crm/v8/coql"}, zohotest.Match{Method: "POST", Path: "/crm/v8/Leads"}
	rounds := []*round{
		{name: "second claim", point: fmt.Sprint(failpoint.Claimed, ":2"), fault: &lost},
		{name: "second claim, one record is there", point: fmt.Sprint(failpoint.Claimed, ":2"), fault: &partly},
		{name: "second answer", point: fmt.Sprint(failpoint.Answered, ":2"), fault: &lost},
		{name: "second answer, one record was there", point: fmt.Sprint(failpoint.Answered, ":2"), fault: &partly},
		{name: "lookup", hold: &lookup, stage: zohotest.BodyRead, fault: &lost},
		{name: "lookup, one record is there", hold: &lookup, stage: zohotest.Executed, fault: &partly},
		{name: "body read", hold: &sending, stage: zohotest.BodyRead},
		{name: "executed", hold: &sending, stage: zohotest.Executed},
	}
	// After the answer is stored a probe changes nothing.
	for _, p := range []failpoint.Point{failpoint.Decoded, failpoint.Claimed, failpoint.Answered, failpoint.Stored} {
		rounds = append(rounds, &round{name: string(p), point: string(p)})
	}
	for _, c := range rounds {
		c.rig = newRig(t, zohotest.Options{})
		c.rig.demo(1)
		if c.fault != nil {
			c.rig.Zoho.Inject(c.fault.On("POST", "/crm/v8/Leads"))
		}
		var hold *zohotest.Hold
		var dead *process
		if c.hold != nil {
			hold = c.rig.Zoho.Hold(c.stage, *c.hold)
			t.Cleanup(hold.Release)
			dead = c.rig.process()
		} else {
			dead = c.rig.process("FAILPOINT=" + c.point)
		}
		records, _ := leads("dead", 2)
		c.rig.publish("demo", probed("dead", doc{"field": "External_Ref"}, records...))
		if hold != nil {
			select {
			case <-hold.Reached():
			case <-time.After(patience):
				t.Fatalf("%s: the call never came", c.name)
			}
			dead.signal(syscall.SIGKILL)
		}
		dead.died()
		if hold != nil {
			hold.Release()
		}
		c.rig.process()
	}
	for _, c := range rounds {
		response := c.rig.await("demo", "dead")
		c.rig.drained()
		c.rig.wantWhole(response, "dead-000", "dead-001")
		if t.Failed() {
			t.Fatalf("in the round %s: %s", c.name, response.AppendJSON(nil))
		}
	}
}

// A worker dies between and in the sendings of retry_failed_records. Without a
// probe nobody knows what it knew: no record is there twice, and nothing is claimed.
func TestCrashWithRetriedRecords(t *testing.T) {
	t.Parallel()
	type round struct {
		point   string
		applied int // records
		rig     *rig
	}
	rounds := []*round{{point: "claimed", applied: 0}, {point: "answered", applied: 1}, {point: "answered:2", applied: 2}}
	for _, c := range rounds {
		c.rig = newRig(t, zohotest.Options{})
		c.rig.demo(1)
		c.rig.Zoho.Inject(zohotest.RefuseRecords(func(fields map[string]any) string {
			if fields["External_Ref"] == "dead-000" {
				return "RECORD_LOCKED"
			}
			return ""
		}).On("POST", "/crm/v8/Leads"))
		dead := c.rig.process("FAILPOINT=" + c.point)
		records, _ := leads("dead", 2)
		c.rig.publish("demo", doc{"id": "dead", "method": "POST", "url": "/v8/Leads", "body": doc{"data": records}, "retry_failed_records": true})
		dead.died()
		c.rig.process()
	}
	for _, c := range rounds {
		wantCode(t, c.rig.await("demo", "dead"), envelope.OutcomeUnknown)
		c.rig.drained()
		if n := len(c.rig.ids()); n != c.applied {
			t.Errorf("%s: %d records are there, want %d", c.point, n, c.applied)
		}
	}
}
