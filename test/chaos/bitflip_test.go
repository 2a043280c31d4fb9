package chaos

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"
)

// TestBitFlip flips bits in the stored messages of one node of a cluster, while
// it is down, under load (F17): in the claims, the responses and the requests. No
// insert is carried out twice, nothing is lost, and the server says what it
// found.
func TestBitFlip(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute")
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
	said := 0
	for _, node := range w.servers {
		log, err := os.ReadFile(filepath.Join(w.dir, node.name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		lines := regexp.MustCompile(`(?m)^.*(?i:checksum|corrupt|bad msg|lost data|message data lost).*$`).FindAllString(string(log), -1)
		said += len(lines)
		for _, line := range lines {
			t.Log(node.name, ": ", line)
		}
	}
	fmt.Printf("%d bits flipped, %d lines of the servers about it\n", flipped, said)
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
