package chaos

import "syscall"

// attributes has the kernel end a process with the test that started it.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
