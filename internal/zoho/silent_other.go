//go:build !unix

package zoho

// silent is a guess where a socket can't be asked without waiting.
func silent(uintptr) bool { return true }
