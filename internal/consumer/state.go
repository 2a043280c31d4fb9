package consumer

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"zoho-worker/internal/flow"
	"zoho-worker/internal/lease"
)

// state is what the record of an org says, in the words of package flow, and
// what a person wants.
type state struct {
	flow.State
	// Resumed is when a person last ended all pauses.
	Resumed time.Time `json:"resumed,omitzero"`
	// Deaths is, by lane, up to which sequence requests were in hand of the last
	// worker that died; Trial is the request that is tried alone, and Accused are
	// those with which a worker died that tried them.
	Deaths  map[string]uint64 `json:"deaths,omitempty"`
	Trial   uint64            `json:"trial,omitempty"`
	Accused []uint64          `json:"accused,omitempty"`
	// Running is how many calls were under way when the org was given up, those of
	// workers before included.
	Running int `json:"running,omitempty"`
}

// readState reads the state that an org's record carries; one that can't be
// read says nothing.
func readState(data json.RawMessage) (st state, err error) {
	if len(data) == 0 {
		return state{}, nil
	}
	if err := json.Unmarshal(data, &st); err != nil {
		return state{}, err
	}
	return st, nil
}

// DecodeState reads what package flow has to know of an org's record.
func DecodeState(data json.RawMessage) flow.State {
	st, _ := readState(data)
	return st.State
}

// SetPause is a change of an org's state for lease.Update: nothing of the org is
// started until the pause is over; nil ends all pauses, Zoho's too.
func SetPause(p *flow.Pause, now time.Time) func(json.RawMessage) (json.RawMessage, error) {
	return func(data json.RawMessage) (json.RawMessage, error) {
		st, _ := readState(data)
		if st.Hand = p; p == nil {
			// Later than the last time, whosever clock that was by: the owner looks for it.
			if last := st.Resumed; !now.After(last) {
				now = last.Add(time.Nanosecond)
			}
			st.Pause, st.HeavyPause, st.Resumed = nil, nil, now
		}
		return json.Marshal(st)
	}
}

// save writes the state to the org's record, in the background; one at a time.
func (o *org) save() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unsaved = true
	if o.saving || o.closed {
		return
	}
	o.saving = true
	go o.write()
}

// write saves the state until what is written is what it was last to be saved for; what
// fails is tried again a while later.
func (o *org) write() {
	ctx, cancel := context.WithTimeout(o.calling, 10*time.Second)
	defer cancel()
	err := o.hold.Save(ctx, o.merge)
	o.mu.Lock()
	o.saved = time.Now()
	if o.saving = err == nil && o.unsaved && !o.closed; o.saving {
		go o.write()
	}
	o.unsaved = o.unsaved || err != nil
	o.dispatch() // what a person wants was read on the way
	switch {
	case errors.Is(err, lease.ErrLost):
		o.lostOrg(o)
	case err != nil && o.calling.Err() == nil:
		o.Logger.Warn("the state of the org is not saved", "queue", o.name, "err", err)
	}
}

// saveEvery is the least time between two writes of an org's state, pauses and
// lowered limits apart, which are written at once. What is used of the credits
// meanwhile is not counted when the worker dies, which Zoho's header mends where
// they run short; a shorter time writes more, for every org that has work.
const saveEvery = 20 * time.Second

// merge makes the state to be written of the one there: what a person wants is
// there, the rest is here.
func (o *org) merge(data json.RawMessage) (json.RawMessage, error) {
	there, _ := readState(data) // one that can't be read is written anew
	o.mu.Lock()
	defer o.mu.Unlock()
	o.heed(there)
	o.flow.Changed()
	o.unsaved = false
	st := state{State: o.flow.State(), Resumed: o.resumed, Deaths: maps.Clone(o.trials.deaths), Trial: o.trials.on}
	if !o.closed { // else this worker lives, with all that were tried
		st.Accused = slices.Sorted(maps.Keys(o.trials.accused))
	} else {
		st.State = o.flow.Leaving(o.Clock.Now())
		st.Running, _ = o.flow.Running()
		st.Running += o.foreign()
	}
	return json.Marshal(st)
}

// heed takes in what a person wants. The lock is held.
func (o *org) heed(there state) {
	o.flow.SetHand(there.Hand)
	if there.Resumed.After(o.resumed) {
		o.resumed = there.Resumed
		o.flow.Resume()
	}
}

// told takes in what a person may have changed in the org's record: the latest,
// in whatever order word of changes comes.
func (o *org) told() {
	o.mu.Lock()
	record, _ := o.leases.Record(o.name)
	if there, err := readState(record.State); err == nil && len(record.State) > 0 {
		o.heed(there)
	}
	o.dispatch()
}
