package consent

import (
	"slices"
	"testing"
)

// Whoever owns a Zoho org chooses its name, and operators read it on terminals.
func TestPlain(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"Acme": "Acme", "Ünï": "Ünï", "a\x1b]0;x\ab": "a]0;xb", "a\u009b2J\x7f": "a2J", "a\xffb": "ab", "far too long": "far too l",
	} {
		if got := plain(name, 9); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

// Every consent may ask who consented, and asks for no scope that another one contains.
func TestWithNeeded(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ asked, want []string }{
		{nil, DefaultScopes},
		{[]string{"ZohoCRM.modules.ALL"}, []string{"ZohoCRM.modules.ALL", "ZohoCRM.users.READ", "ZohoCRM.org.READ"}},
		{[]string{"ZohoCRM.users.ALL", "ZohoCRM.org.READ"}, []string{"ZohoCRM.users.ALL", "ZohoCRM.org.READ"}},
	} {
		if got := withNeeded(test.asked); !slices.Equal(got, test.want) {
			t.Errorf("%q: %q", test.asked, got)
		}
	}
}
