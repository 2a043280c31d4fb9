//go:build production

package main

import "github.com/spf13/cobra"

// A production build has no sandbox, and so neither the servers nor the
// simulator that it embeds.
func sandboxCommands() []*cobra.Command { return nil }

const tryIt = ""

// noSandbox is said to who asks for it.
const noSandbox = "the sandbox is not in a production build; go run ./cmd/worker dev has it"
