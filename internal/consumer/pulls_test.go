package consumer

import (
	"errors"
	"testing"

	"github.com/nats-io/nats.go"
)

// What nats-server says of pulls, in its words, and what it means for a lane.
func TestSaid(t *testing.T) {
	t.Parallel()
	some := errors.New("any other")
	for _, c := range []struct {
		status, text, pending string
		left                  int
		there                 bool
		err                   error
	}{
		{"100", "Idle Heartbeat", "", 0, true, nil},
		{"408", "Request Timeout", "7", 7, true, nil},
		{"408", "Interest Expired", "3", 3, true, nil},
		{"404", "No Messages", "", 0, true, nil},
		{"409", "Server Shutdown", "12", 12, true, nil},
		{"409", "Message Size Exceeds MaxBytes", "9", 9, true, nil},
		{"409", "Batch Completed", "0", 0, true, nil},
		{"409", "Leadership Change", "", 0, true, errMoved},
		{"409", "Consumer Deleted", "", 0, true, errMoved},
		{"503", "", "", 0, false, nil},
		{"409", "Consumer is push based", "", 0, true, some},
		{"400", "Bad Request - invalid", "", 0, true, some},
	} {
		msg := &nats.Msg{Header: nats.Header{"Status": {c.status}}}
		if c.text != "" {
			msg.Header.Set("Description", c.text)
		}
		if c.pending != "" {
			msg.Header.Set("Nats-Pending-Messages", c.pending)
		}
		left, there, err := said(msg)
		right := errors.Is(err, c.err)
		if c.err == some {
			right = err != nil && !errors.Is(err, errMoved)
		}
		if left != c.left || there != c.there || !right {
			t.Errorf("%s %s: %d left, there %v, error %v", c.status, c.text, left, there, err)
		}
	}
}
