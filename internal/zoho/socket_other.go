//go:build !unix

package zoho

import (
	"net"
	"syscall"
)

// socketOf returns nil: a socket can't be asked without waiting.
func socketOf(net.Conn) syscall.RawConn { return nil }

func silent(uintptr) bool { return true }

func write(uintptr, []byte) (int, error) { return 0, nil }
