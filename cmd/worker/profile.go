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

// With -tags profile the worker profiles itself from its start to SIGUSR2, for
// docs/performance.md: its processor time into the file that CPU_PROFILE names,
// and what it allocated beside it; or, because that takes time of its own, where
// it waited into the file that BLOCK_PROFILE names, and for which locks beside it.
func init() {
	var ends []func()
	if name := os.Getenv("CPU_PROFILE"); name != "" {
		file, err := os.Create(name)
		if err != nil {
			log.Fatal(err)
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			log.Fatal(err)
		}
		ends = append(ends, func() {
			pprof.StopCPUProfile()
			_ = file.Close()
			runtime.GC()
			write("allocs", name+".heap")
		})
	}
	if name := os.Getenv("BLOCK_PROFILE"); name != "" {
		runtime.SetBlockProfileRate(1)     // each wait
		runtime.SetMutexProfileFraction(1) // each that another caused
		ends = append(ends, func() {
			write("block", name)
			write("mutex", name+".mutex")
		})
	}
	if len(ends) == 0 {
		return
	}
	done := make(chan os.Signal, 1)
	signal.Notify(done, syscall.SIGUSR2)
	go func() {
		<-done
		for _, end := range ends {
			end()
		}
	}()
}

func write(profile, name string) {
	file, err := os.Create(name)
	if err == nil {
		err = pprof.Lookup(profile).WriteTo(file, 0)
		_ = file.Close()
	}
	if err != nil {
		log.Print(err)
	}
}
