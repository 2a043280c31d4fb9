package chaos

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// TestBitFlip flips bits in the stored messages of one node of a cluster, while
// it is down, under load (F17): in the claims, the responses and the requests. No
// insert is carried out twice, nothing is lost, and in the end the node has what
// the others have: it drops what its checksums refuse and gets it from them.
func TestBitFlip(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of make chaos-short: a minute; make chaos runs it")
	}
	w := newWorld(t, options{nodes: 3})
	seed := number(t, "CHAOS_SEED", uint64(rand.Uint32()))
	random := rand.New(rand.NewPCG(seed, 0))
	flipped := 0
	w.trial("three nats-servers, bits flipped", seed, func(w *world) map[string]int {
		for i := range w.servers {
			time.Sleep(4 * time.Second)
			w.settle()
			start := time.Now()
			up, ok := killNode(w, strike{pick: i})
			if !ok {
				t.Fatal("NATS was down already")
			}
			for _, stream := range []string{"ZOHO_CLAIMS", "ZOHO_RESPONSES", "ZOHO_REQUESTS"} {
				flipped += w.flip(random, w.servers[i].name, stream)
			}
			up()
			w.settle()
			w.span("NATS node with flipped bits", start)
		}
		return nil
	})
	if flipped == 0 {
		t.Error("no bit was flipped")
	}
	// Each node has the same messages, whichever leads.
	for _, stream := range []string{"ZOHO_CLAIMS", "ZOHO_RESPONSES"} {
		var first map[uint64]string
		for _, node := range w.servers {
			got := w.content(stream, node.name)
			if first == nil {
				first = got
			}
			if len(got) == 0 || !maps.Equal(got, first) {
				t.Errorf("%s: %s has %d messages, %s has %d, or others", stream, node.name, len(got), w.servers[0].name, len(first))
			}
		}
	}
	fmt.Println(flipped, "blocks with a flipped bit")
}

// content is what the node says is in the stream, as its leader.
func (w *world) content(stream, node string) map[uint64]string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for {
		info, err := w.js.Stream(ctx, stream)
		if err == nil && info.CachedInfo().Cluster.Leader == node {
			break
		}
		if ctx.Err() != nil {
			w.t.Fatalf("%s doesn't become the leader of %s", node, stream)
		}
		_, _ = w.nc.Request("$JS.API.STREAM.LEADER.STEPDOWN."+stream, []byte(`{"placement":{"preferred":"`+node+`"}}`), 3*time.Second)
		time.Sleep(500 * time.Millisecond)
	}
	info, err := w.js.Stream(ctx, stream)
	if err != nil {
		w.t.Fatal(err)
	}
	state := info.CachedInfo().State
	all := map[uint64]string{}
	for seq := state.FirstSeq; seq <= state.LastSeq; seq++ {
		msg, err := info.GetMsg(ctx, seq)
		switch {
		case err == nil:
			all[seq] = msg.Subject + "\n" + string(msg.Data)
		case !errors.Is(err, jetstream.ErrMsgNotFound):
			w.t.Errorf("%s at %s: message %d: %v", stream, node, seq, err)
		}
	}
	if uint64(len(all)) != state.Msgs {
		w.t.Errorf("%s at %s: %d messages can be read, and it says it has %d", stream, node, len(all), state.Msgs)
	}
	return all
}

// flip flips a bit in each block of messages of the stream, and takes the index
// away, so that the node reads what it has.
func (w *world) flip(random *rand.Rand, node, stream string) (n int) {
	w.t.Helper()
	dir := filepath.Join(w.dir, node, "jetstream", "$G", "streams", stream, "msgs")
	blocks, err := filepath.Glob(filepath.Join(dir, "*.blk"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, block := range blocks {
		data, err := os.ReadFile(block)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(data) < 200 {
			continue
		}
		data[100+random.IntN(len(data)-200)] ^= 1 << random.IntN(8)
		if err := os.WriteFile(block, data, 0o600); err != nil {
			w.t.Fatal(err)
		}
		n++
	}
	_ = os.Remove(filepath.Join(dir, "index.db"))
	return n
}
