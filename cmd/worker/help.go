package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// What the commands are for, in the order in which somebody meets them.
const (
	forTrying  = "Try it"
	forRunning = "Run workers"
	forCalling = "Call Zoho, and see what became of it"
	forCaring  = "Look after it"
)

// kinds are what settings are about, by the beginnings of their names. The last
// takes what no other does.
var kinds = []struct {
	title string
	names []string
}{
	{"NATS", []string{"nats-", "replicas", "retention", "reply-prefixes", "ack-wait"}},
	{"Redis", []string{"redis-"}},
	{"Zoho", []string{"zoho-", "call-timeout", "max-in-flight", "credits-reserve"}},
	{"Console and events", []string{"console-", "oidc-", "webhook-", "public-url"}},
	{"General", []string{""}},
}

// kindOf is what a flag is about; "" is of the command itself: no setting.
func kindOf(f *pflag.Flag) string {
	if !strings.Contains(f.Usage, "[$") {
		return ""
	}
	for _, kind := range kinds {
		if slices.ContainsFunc(kind.names, func(name string) bool { return strings.HasPrefix(f.Name, name) }) {
			return kind.title
		}
	}
	return ""
}

// usage writes what cobra's own does, but commands stand together by what they are
// for, settings by what they are about, and lines fit the terminal.
func usage(c *cobra.Command) error {
	width := 0 // for a pipe, where somebody searches, a line each
	if w, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
		width = w
	}
	_, err := io.WriteString(c.OutOrStderr(), usageText(c, width))
	return err
}

func usageText(c *cobra.Command, width int) string {
	var b strings.Builder
	b.WriteString("Usage:\n")
	if c.Runnable() && !parent(c) {
		fmt.Fprintf(&b, "  %s\n", c.UseLine())
	}
	if c.HasAvailableSubCommands() {
		fmt.Fprintf(&b, "  %s COMMAND\n", c.CommandPath())
	}
	if c.HasExample() {
		fmt.Fprintf(&b, "\nExamples:\n%s\n", c.Example)
	}
	for _, group := range append(c.Groups(), &cobra.Group{Title: "Commands"}) {
		var rows [][2]string
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() && sub.GroupID == group.ID {
				rows = append(rows, [2]string{"  " + sub.Name(), sub.Short})
			}
		}
		table(&b, group.Title, rows, width)
	}
	sections := map[string][][2]string{}
	add := func(f *pflag.Flag) {
		kind := kindOf(f)
		if !f.Hidden && (kind == "" || !parent(c)) { // its sub-commands show the settings
			sections[kind] = append(sections[kind], flagRow(f))
		}
	}
	c.LocalFlags().VisitAll(add)
	c.InheritedFlags().VisitAll(add)
	table(&b, "Flags", sections[""], width)
	for _, kind := range kinds {
		table(&b, kind.title, sections[kind.title], width)
	}
	switch {
	case c.HasAvailableSubCommands():
		fmt.Fprintf(&b, "\n%s COMMAND --help says more about a command.\n", c.CommandPath())
	case len(sections) > 1:
		b.WriteString("\nA setting is a flag, the environment variable in brackets, or a key of the file of --config.\n")
	}
	return b.String()
}

// flagRow is a flag and what it means.
func flagRow(f *pflag.Flag) [2]string {
	left := "      --" + f.Name
	if f.Shorthand != "" {
		left = "  -" + f.Shorthand + ", --" + f.Name
	}
	value, usage := pflag.UnquoteUsage(f)
	if f.Value.Type() != "bool" {
		left += " " + strings.TrimSuffix(value, "Array")
	}
	if zero := []string{"", "0", "0s", "false", "[]"}; !slices.Contains(zero, f.DefValue) {
		usage += " (default " + f.DefValue + ")"
	}
	return [2]string{left, usage}
}

// table writes rows of two columns below a title, nothing where there are none.
func table(b *strings.Builder, title string, rows [][2]string, width int) {
	if len(rows) == 0 {
		return
	}
	indent := 0
	for _, row := range rows {
		indent = max(indent, len(row[0])+2)
	}
	fmt.Fprintf(b, "\n%s:\n", title)
	for _, row := range rows {
		fmt.Fprintf(b, "%-*s%s\n", indent, row[0], strings.Join(folded(row[1], width-indent), "\n"+strings.Repeat(" ", indent)))
	}
}

// folded is text in lines of a width; what is too narrow to read is left alone.
func folded(text string, width int) (lines []string) {
	if width < 20 {
		return []string{text}
	}
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len([]rune(line+" "+word)) > width {
			lines, line = append(lines, line), ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	return append(lines, line)
}

// wrongFlag says what is near to a flag that isn't there, and where all of them are.
func wrongFlag(c *cobra.Command, err error) error {
	unknown, isUnknown := errors.AsType[*pflag.NotExistError](err)
	text := err.Error()
	if isUnknown && unknown.GetSpecifiedShortnames() == "" {
		near := ""
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && (distance(f.Name, unknown.GetSpecifiedName()) <= 2 || strings.HasPrefix(f.Name, unknown.GetSpecifiedName())) {
				near = cmp.Or(near, f.Name)
			}
		})
		if near != "" {
			text += ": did you mean --" + near + "?"
		}
	}
	return fmt.Errorf("%s\n%s --help lists its flags", text, c.CommandPath())
}

// distance is how many letters have to be changed, added or left out to make a b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := before
			if a[i] != b[j] {
				change++
			}
			before, row[j+1] = row[j+1], min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
