//go:build unix

package zoho

import (
	"errors"
	"net"
	"syscall"
)

// socketOf returns how to read from a connection by system calls, nil where there is no way.
func socketOf(c net.Conn) syscall.RawConn {
	s, ok := c.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// silent reports whether there is nothing to be read from an open connection: no
// byte, no end, no error.
func silent(fd uintptr) bool {
	var b [1]byte
	n, err := syscall.Read(int(fd), b[:])
	return n < 0 && full(err)
}

// write writes as much of p as the kernel takes without waiting.
func write(fd uintptr, p []byte) (n int, err error) {
	for n < len(p) {
		m, err := syscall.Write(int(fd), p[n:])
		switch {
		case m > 0:
			n += m
		case full(err):
			return n, nil
		case !errors.Is(err, syscall.EINTR):
			return n, err
		}
	}
	return n, nil
}

// full reports whether a system call would have had to wait.
func full(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EWOULDBLOCK)
}
