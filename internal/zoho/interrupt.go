package zoho

import (
	"context"
	"sync"
)

// interrupts cut the connections of calls whose context ends. Most calls have the
// same context, or one with the same end, which is watched once for all of them:
// to watch it anew for each costs a fiftieth of the call.
type interrupts struct {
	mu      sync.Mutex
	end     <-chan struct{} // that is watched
	ignore  func() bool
	running map[*kept]struct{} // the connections to be cut then
}

// watch has k cut when ctx ends. Where it returns a function, ctx is watched for k
// alone.
func (i *interrupts) watch(ctx context.Context, k *kept) (alone func() bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	end := ctx.Done()
	if end != i.end || end == nil {
		if len(i.running) > 0 {
			return context.AfterFunc(ctx, k.cut)
		}
		if i.ignore != nil {
			i.ignore()
		}
		i.end, i.ignore = end, context.AfterFunc(ctx, func() { i.cut(end) })
	}
	if i.running == nil {
		i.running = make(map[*kept]struct{})
	}
	i.running[k] = struct{}{}
	return nil
}

// done ends what watch began, and reports whether k was not cut.
func (i *interrupts) done(k *kept, alone func() bool) bool {
	if alone != nil {
		return alone()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	_, there := i.running[k]
	delete(i.running, k)
	return there
}

// cut cuts all, where it is still that end which is watched.
func (i *interrupts) cut(end <-chan struct{}) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.end != end {
		return
	}
	i.end, i.ignore = nil, nil
	for k := range i.running {
		k.cut()
	}
	clear(i.running)
}
