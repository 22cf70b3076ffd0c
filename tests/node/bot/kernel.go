package main

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

const clockBoottime = 7

// monotonic returns seconds since the machine's start, which no clock correction moves.
func monotonic() float64 {
	var at syscall.Timespec
	_, _, failed := syscall.Syscall(
		syscall.SYS_CLOCK_GETTIME, clockBoottime, uintptr(unsafe.Pointer(&at)), 0)
	if failed != 0 {
		return 0
	}
	return float64(at.Sec) + float64(at.Nsec)/float64(time.Second)
}

// forbidden tries what a restricted container must not do, and prints the kernel's answers.
func forbidden() {
	answers := map[string]string{}
	note := func(what string, err error) {
		answers[what] = "done"
		if err == nil {
			return
		}
		answers[what] = err.Error()
		for _, known := range []struct {
			number syscall.Errno
			name   string
		}{
			{syscall.EPERM, "EPERM"}, {syscall.EROFS, "EROFS"}, {syscall.EACCES, "EACCES"},
			{syscall.ENOENT, "ENOENT"}, {syscall.ESRCH, "ESRCH"},
		} {
			if number(err) == known.number {
				answers[what] = known.name
			}
		}
	}
	note("write /", os.WriteFile("/written", []byte("x"), 0o600))
	note("write /usr/local/bin", os.WriteFile("/usr/local/bin/written", []byte("x"), 0o600))
	note("write /config", os.WriteFile("/config/written", []byte("x"), 0o600))
	note("write /tmp", os.WriteFile("/tmp/written", []byte("x"), 0o600))
	_, _, failed := syscall.RawSyscall(syscall.SYS_SETUID, 0, 0, 0)
	note("setuid 0", reported(failed))
	note("mount", syscall.Mount("tmpfs", "/tmp", "tmpfs", 0, ""))
	note("unshare", syscall.Unshare(syscall.CLONE_NEWNS))
	raw, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_RAW, syscall.IPPROTO_ICMP)
	_ = syscall.Close(raw)
	note("raw socket", err)
	packet, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, 0)
	_ = syscall.Close(packet)
	note("packet socket", err)
	note("mknod", syscall.Mknod("/tmp/disk", syscall.S_IFBLK|0o600, 8<<8))
	note("sethostname", syscall.Sethostname([]byte("x")))
	note("reboot", syscall.Reboot(syscall.LINUX_REBOOT_CMD_CAD_OFF))
	_, err = os.Stat("/var/run/secrets/kubernetes.io")
	note("token", err)
	note("other process", syscall.PtraceAttach(2))
	answers["uid"] = map[bool]string{true: "root", false: "not root"}[os.Getuid() == 0]
	answers["no new privileges"] = status("NoNewPrivs")
	answers["seccomp"] = status("Seccomp")
	answers["capabilities"] = status("CapEff") + " " + status("CapBnd")
	encoded, _ := json.Marshal(answers)
	os.Stdout.Write(append(encoded, '\n'))
}

func reported(number syscall.Errno) error {
	if number == 0 {
		return nil
	}
	return number
}

func number(err error) syscall.Errno {
	var found syscall.Errno
	errors.As(err, &found)
	return found
}

// status returns a line of /proc/self/status.
func status(name string) string {
	text, _ := os.ReadFile("/proc/self/status")
	for _, line := range strings.Split(string(text), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
