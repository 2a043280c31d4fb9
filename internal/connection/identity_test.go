package connection_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"zoho-worker/internal/connection"
	"zoho-worker/internal/secret"
)

// TestOneOfMany has many workers add the same Zoho user under different names
// in the same instant.
func TestOneOfMany(t *testing.T) {
	t.Parallel()
	server, k, _ := started(t)
	const n = 8
	stores := make([]*connection.Store, n)
	for i := range stores {
		stores[i] = open(t, server.JetStream(), k)
	}
	var wait sync.WaitGroup
	errs := make([]error, n)
	begin := make(chan struct{})
	for i, s := range stores {
		wait.Go(func() {
			<-begin
			c := acme()
			c.Name = fmt.Sprint("acme", i)
			_, errs[i] = s.Add(t.Context(), c, secret.New(fmt.Sprint("r", i)))
		})
	}
	close(begin)
	wait.Wait()
	added := 0
	for _, err := range errs {
		if err == nil {
			added++
		} else if _, ok := errors.AsType[connection.ErrDuplicate](err); !ok {
			t.Error(err)
		}
	}
	if added != 1 {
		t.Fatalf("%d were added, want one", added)
	}
}

func TestGrantsAreCounted(t *testing.T) {
	t.Parallel()
	_, _, s := started(t)
	c := add(t, s, acme(), "r0")
	id, ok := c.Identity()
	if !ok {
		t.Fatal("no identity")
	}
	for i := range 24 {
		if _, err := s.NoteGrant(t.Context(), id, secret.New(fmt.Sprint("r", i)), "acme"); err != nil {
			t.Fatal(err)
		}
	}
	name, grants, err := s.Holder(t.Context(), id)
	if err != nil || name != "acme" || len(grants) != 20 { // zoho-facts 1.6
		t.Fatalf("%s, %d grants, %v", name, len(grants), err)
	}
	if err := s.ForgetGrant(t.Context(), id, secret.New("r23")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "acme", "test"); err != nil {
		t.Fatal(err)
	}
	name, grants, err = s.Holder(t.Context(), id)
	if err != nil || name != "" || len(grants) != 20-1 {
		t.Fatalf("%s, %d grants, %v", name, len(grants), err)
	}
	second := acme()
	second.Name = "acme2"
	add(t, s, second, "r30") // at once: the first one is gone
}
