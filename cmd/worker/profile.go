//go:build profile

package main

import (
	"log"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"
)

// With -tags profile the worker profiles itself into the file that CPU_PROFILE
// names, from its start to SIGUSR2, and its allocations beside it: for
// docs/performance.md and default.pgo.
func init() {
	name := os.Getenv("CPU_PROFILE")
	if name == "" {
		return
	}
	file, err := os.Create(name)
	if err != nil {
		log.Fatal(err)
	}
	if err := pprof.StartCPUProfile(file); err != nil {
		log.Fatal(err)
	}
	done := make(chan os.Signal, 1)
	signal.Notify(done, syscall.SIGUSR2)
	go func() {
		<-done
		pprof.StopCPUProfile()
		_ = file.Close()
		if heap, err := os.Create(name + ".heap"); err == nil {
			runtime.GC()
			_ = pprof.Lookup("allocs").WriteTo(heap, 0)
			_ = heap.Close()
		}
	}()
}
