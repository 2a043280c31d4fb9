package chaos

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/reliability.md")

// row is a row of the fault matrix. Its tests prove the promise, but for what
// open says; without tests it isn't proven.
type row struct {
	fault, promise string
	tests          []string
	open           string
}

const (
	one     = "TestChaosOneServer"
	cluster = "TestChaosCluster"
	clocks  = "TestChaosClocks"
)

// matrix is rows F1 to F52 in order.
var matrix = []row{
	{"worker `kill -9`, at random", "no insert twice", []string{one, cluster, "TestCrashUnderLoad"}, ""},
	{"`kill -9` after the claim, before the first byte", "no insert twice; answered", []string{"TestCrashWithOneInsert", "TestAbandonedAtEachPoint"}, ""},
	{"`kill -9` when Zoho has read the request", "no insert twice; answered `outcome_unknown`", []string{"TestCrashWithOneInsert", "TestCrashUnderLoad"}, ""},
	{"`kill -9` between answer, stored response, reply and ack", "the same response again", []string{"TestCrashWithOneInsert", "TestCrashUnderLoad"}, ""},
	{"SIGTERM, a rolling restart under load", "nothing lost, doubled or unknown", []string{"TestRollingRestart", "TestStopWith500InFlight", "TestProduction", "TestRollingRestartIsHardlySeen"}, ""},
	{"worker suspended for longer than lease and `AckWait`, or with a clock that is 10 minutes off", "sends nothing after its lease", []string{"TestSuspendedWorker", one, cluster, clocks}, ""},
	{"worker killed for want of memory", "as F1", []string{"TestOutOfMemory", "TestRequestThatKillsWorkers"}, ""},
	{"`kill -9` of all workers at once", "answered when they are back", []string{one, cluster}, ""},
	{"NATS node `kill -9`", "no loss; no insert twice", []string{cluster, one, "TestNATSRestart", "TestLanesGoOn", "TestGaps"}, ""},
	{"streams and consumers change leaders", "as F9", []string{cluster, "TestWidenedConsumerKeepsMessages", "TestGaps"}, ""},
	{"leader of the claims lost while one is written", "a worker recognises its own write", []string{"TestOwnWriteIsRecognised", "TestFalseConflict", cluster}, ""},
	{"leader of requests or responses lost", "no loss; one response", []string{cluster}, ""},
	{"two of three NATS nodes down", "inserts stop, and go on by themselves", []string{cluster, "TestTwoOfThreeDown"}, ""},
	{"rolling upgrade of NATS, 2.14 to the release in go.mod", "no loss", []string{"TestRollingUpgrade"}, ""},
	{"NATS disk full, account or stream full", "inserts stop; not ready; nothing is dropped; publishers are told", []string{"TestDiskFull", "TestStoreLimit", "TestRequestStreamFull"}, "with a full disk a publisher gets no answer instead of an error, and nats-server needs a restart: so does NATS"},
	{"power loss of all NATS nodes and workers at once", "as durable as `sync_interval` says: `always` loses nothing acknowledged; the default of 2 minutes lost 500 of 500 messages just acknowledged", []string{"TestPowerLoss", "TestPowerLossControl"}, ""},
	{"bits flip in one node's store of a cluster", "dropped by their checksums, had again from the others; no insert twice", []string{"TestBitFlip"}, "the node reads its whole store at its start; one that trusts its index notices when it reads the message"},
	{"acknowledgements from NATS are lost", "the stored response again", []string{one, cluster, "TestOwnWriteIsRecognised"}, ""},
	{"NATS slow and its connections reset", "works, slower", []string{one, cluster}, ""},
	{"NATS behind a narrow line (10 KB/s)", "no loss", []string{one, cluster}, ""},
	{"NATS credentials change while connected", "connected again with the new ones", []string{"TestNATSCreds", "TestCredentialsRenewed"}, ""},
	{"a NATS permission is taken away", "not ready within 5 s; goes on by itself when it is back", []string{"TestPermissionTakenAway"}, ""},
	{"Redis FLUSHALL", "one refresh per expiry", []string{"TestOneRefreshThroughFlush", one, cluster}, ""},
	{"Redis `kill -9`, comes back empty", "one refresh per expiry; no errors", []string{"TestOneRefreshThroughKill", one, cluster}, ""},
	{"Redis down", "one refresh per expiry; at most 300 ms lost", []string{"TestOneRefreshWithoutRedis", "TestUnavailable", "TestCircuit"}, ""},
	{"Redis fails over and loses the lock", "two refreshes at most", []string{"TestOneRefreshThroughKill", "TestRedisSentinel"}, ""},
	{"Redis out of memory, read-only, of another type", "goes on without", []string{"TestUnavailable"}, ""},
	{"lock holder killed during a refresh", "two refreshes at most", []string{"TestOneMoreAfterACrash"}, ""},
	{"many requests at the instant of expiry, 16 workers", "one refresh", []string{"TestOneRefreshInPeace", "TestOneRefreshPerExpiry"}, ""},
	{"token endpoint: Access Denied", "backs off, for all workers; never marked revoked", []string{"TestBlocksAreShared", "TestThrottledConnectionTakesNoPlaces", one, cluster}, ""},
	{"refresh token revoked", "requests wait for re-authorization; others go on", []string{"TestRevokedAndReauthorized", "TestRevoked", "TestConsoleReauthorize", one, cluster}, ""},
	{"all access tokens invalid at once", "one refresh per connection", []string{"TestStormOfInvalidTokens", "TestOneRefreshPerExpiry"}, ""},
	{"429, with and without Retry-After", "no loss; no tight loop; other orgs unaffected", []string{"TestThrottle", "TestLongestPause", "TestThrottledNeighbourIsNotSeen", one, cluster}, "the other orgs' median is judged, their 99th percentile printed: a machine that runs tests is too busy for more"},
	{"daily limit used up for hours", "answered at their deadlines; places stay free", []string{"TestDeadlineInPause", "TestLongestPause", "TestExhausted"}, "hours pass by the clock of package flow alone; where a worker runs, Zoho asks for a pause of 20 minutes and the deadlines are seconds"},
	{"Zoho refuses connections", "done later; nothing unknown", []string{"TestUnsent", "TestRefusedForMinutes", one, cluster}, ""},
	{"connection reset after the request was read", "`outcome_unknown`; never sent again", []string{"TestUnknownOutcome", "TestOnceIsNeverSentTwice", one, cluster}, ""},
	{"connection closed before the request was read", "at most one execution", []string{"TestCloseBeforeReading", "TestKeptConnectionsThatClose", "TestOnceIsNeverSentTwice", one, cluster}, ""},
	{"slow headers, slow body", "the call ends at its timeout", []string{"TestSlow", "TestSlowDripHoldsNoPlace", one, cluster}, ""},
	{"100 MB response, gzip bomb", "bounded memory; answered", []string{"TestBodies", "TestTooLarge", "TestMemoryOfLargeAnswers"}, ""},
	{"HTTP/2 offered, reset with PROTOCOL_ERROR", "sent once", []string{"TestTLS", "TestTLSBreaks"}, ""},
	{"wrong certificate; a name that points inside", "not sent", []string{"TestTLS", "TestNamesThatPointInside"}, ""},
	{"the same request published twice", "executed once; answered alike", []string{"TestEverythingTwice", "TestIDIsIdempotencyKey", one, cluster}, ""},
	{"the same id with other content", "`id_conflict`", []string{"TestIDIsIdempotencyKey"}, ""},
	{"an id used again after its retention", "a new execution, as documented", []string{"TestIDAfterRetention"}, ""},
	{"a message that is no request", "answered, or a dead letter; never a loop", []string{"TestBadRequests", "TestDeadLetters"}, ""},
	{"the deadline has passed already", "`deadline_exceeded`; not sent", []string{"TestDeadline"}, ""},
	{"backlog of one org", "other orgs aren't held up: their median is 42 ms alone and beside a million (`BACKLOG=1000000`; each run has 20,000)", []string{"TestBacklogOfAnotherOrg"}, ""},
	{"encryption key rotated, or missing", "readable with the old key; a missing one locks its connections only", []string{"TestKeyRotation", "TestRotation", "TestConsoleLocked"}, ""},
	{"a day under random faults", "all invariants", nil, "nobody has run it; how to is [above](#a-day-of-it)"},
	{"NATS comes back without its last writes, or with a stream of requests that is made anew, while workers go on", "none of the requests that come then is taken for one in hand, or acked for it", []string{"TestSequencesBeginAgain", "TestDeadlinesInAnotherStream", "TestValuesLostAndOthersWritten"}, ""},
	{"a stream is deleted while workers run", "not ready, with its name; they go on when it is there again", []string{"TestStreamGone", "TestStreamsMadeAnew", "TestConnectionsRestored", "TestGrantCountedAnew"}, ""},
	{"the clock of the NATS server is set", "a dead worker's orgs go to others all the same; claims end neither early nor late", []string{"TestClockGoesBack", "TestServerClockSet"}, "what the clock says is made up in the tests"},
}

const preamble = `# Reliability

What can go wrong, what is promised then, and which test shows it. Words are those of [the design](design.md).
This page is written by a test (` + "`cd test/chaos && go test -run Reliability -update`" + `), and each test that it names exists.

## All at once: make chaos

` + "`make chaos`" + ` starts three workers, redis-server, and nats-server (once a single one, once a cluster of three) as processes, with
proxies between them, and Zoho's simulator. Eight requesters publish GETs, inserts as they are, with ` + "`unique_field`" + ` and with a ` + "`probe`" + `, and PUTs
for four connections of three orgs; one request in seven is published a second time. Meanwhile every kind of fault in the
list below strikes, in an order, at targets and for times that come from a seed.
When the faults are over and the streams are empty, the books are balanced:

| what holds | how it is seen |
| --- | --- |
| no insert is executed twice | records and calls in the simulator's ledger, by the id in the body |
| every acknowledged request has one response; replies and stored response are the same bytes | the stream of responses, the requesters' inboxes |
| a response that says success has its execution, with that body, and names that record | the simulator's ledger and records |
| ` + "`outcome_unknown`" + ` only for inserts that neither name a ` + "`unique_field`" + ` nor have a probe (unless Zoho refused two tokens of its repetition or lookup), and only where a fault was near | times of the faults |
| nothing is left on the stream of requests, nothing unacknowledged; no dead letter, unless four workers died of the request | JetStream |
| no grant is refreshed more often than Zoho allows | the simulator's ledger |
| no request is sent with another connection's token | the simulator's ledger |
| no secret in logs and responses | all tokens that the simulator made, the client's secret, the key |
| no files left open, and every worker stops in time | /proc, exit status |

A reply to an inbox is as fleeting as NATS: if a NATS node dies, a GET's reply may die with it. The requester then asks again, and
the table counts it.

Beside that it runs the worlds that take a build or a minute of their own: workers with wrong clocks, a cluster upgraded from
NATS 2.14, power cuts, flipped bits, a minute without two of three NATS nodes, five minutes in which Zoho refuses connections, and how long
nobody is answered when a node dies. ` + "`make chaos-short`" + ` leaves those out, strikes for 12 s with one seed, and is part of CI.

It prints one table and its sum in a sentence, and fails where anything is lost, doubled or otherwise wrong.
` + "`CHAOS_SECONDS`" + ` (45) or ` + "`CHAOS_MINUTES`" + ` say for how long faults strike, ` + "`CHAOS_SEED`" + ` replays the schedule of a run that
failed. The schedule comes back exactly, the interleaving of processes doesn't. It needs redis-server in PATH (` + "`REQUIRE_REDIS=1`" + `
insists) and listens on loopback only.

`

const soak = `### A day of it

` + "`CHAOS_MINUTES`" + ` is for each of the three worlds that are under faults of every kind. A day of faults on the cluster alone:

` + "```sh\nCHAOS_MINUTES=1440 CHAOS_FLAGS='-run TestChaosCluster' make chaos\n```" + `

The load stretches with the time, to 100,000 requests at most: one a second or so for a day. Their books, and what the simulator
saw of each, are kept in memory until the end, and the workers' logs on disk, in debug. Give it a machine of its own; the seed is its first line.

The longest run so far, 8 minutes for each world on two cores: 2,066 faults, 32,971 requests acknowledged and answered, none lost, none
doubled. 76 inserts were answered ` + "`outcome_unknown`" + `, and 4 requests ` + "`internal`" + `, which were under way alone as their workers were killed.
`

// page is docs/reliability.md.
func page() string {
	var text strings.Builder
	text.WriteString(preamble)
	text.WriteString("The kinds of faults: ")
	for i, k := range kinds {
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(k.name)
		if k.clusterOnly {
			text.WriteString(" (cluster)")
		}
	}
	text.WriteString(".\n\n" + soak + "\n## Fault by fault\n\n| # | fault | promise | shown by | result |\n| --- | --- | --- | --- | --- |\n")
	count := map[string]int{}
	for i, r := range matrix {
		result := "proven"
		switch {
		case len(r.tests) == 0:
			result = "**not proven yet**"
		case r.open != "":
			result = "proven in part"
		}
		count[result]++
		if r.open != "" {
			result += ": " + r.open
		}
		names := make([]string, len(r.tests))
		for j, name := range r.tests {
			names[j] = "`" + name + "`"
		}
		fmt.Fprintf(&text, "| F%d | %s | %s | %s | %s |\n", i+1, r.fault, r.promise, strings.Join(names, ", "), result)
	}
	fmt.Fprintf(&text, "\nOf %d faults, %d are proven, %d in part, and %d not yet.\n",
		len(matrix), count["proven"], count["proven in part"], count["**not proven yet**"])
	return text.String()
}

func TestReliabilityPage(t *testing.T) {
	const file = "../../docs/reliability.md"
	want := page()
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil { //nolint:gosec // documentation
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the matrix says: go test -run Reliability -update", file)
	}
}

func TestReliabilityNamesTestsThatExist(t *testing.T) {
	if len(matrix) != 52 {
		t.Errorf("the matrix has %d rows, not 52", len(matrix))
	}
	tests, err := testsOf("../..")
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range matrix {
		for _, name := range r.tests {
			if !slices.Contains(tests, name) {
				t.Errorf("F%d names %s, and there is no such test", i+1, name)
			}
		}
	}
	if !slices.Contains(tests, t.Name()) || slices.Contains(tests, "TestThatNobodyWrote") {
		t.Error("the check finds tests that don't exist, or not those that do")
	}
}

// testsOf parses the names of all tests under a directory out of the sources.
func testsOf(root string) (names []string, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == "testdata" || len(d.Name()) > 2 && d.Name()[0] == '.'):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				names = append(names, f.Name.Name)
			}
		}
		return nil
	})
	return names, err
}
