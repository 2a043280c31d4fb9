// Package chaos proves what docs/reliability.md promises: real workers, a real
// redis-server and nats-server processes (one, and a cluster of three) against
// the Zoho simulator, under a steady mixed load, with faults drawn from a seed.
// At the end it balances the books: nothing lost, nothing twice.
//
// It measures no speed, and it doesn't replace the tests of single faults in
// test/integration: those strike between two given steps, this one anywhere.
//
// CHAOS_SECONDS (45) or CHAOS_MINUTES say for how long faults strike each
// world; CHAOS_SEED replays the schedule of an earlier run; CHAOS_KEEP=1 keeps
// the logs of a run that passed, too.
package chaos
