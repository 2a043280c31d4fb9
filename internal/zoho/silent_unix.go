//go:build unix

package zoho

import "syscall"

// silent reports whether there is nothing to be read from an open connection: no
// byte, no end, no error.
func silent(c syscall.RawConn) bool {
	open := false
	err := c.Read(func(fd uintptr) bool {
		var b [1]byte
		n, err := syscall.Read(int(fd), b[:])
		open = n < 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK)
		return true
	})
	return open && err == nil
}
