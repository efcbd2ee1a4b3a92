"""The few kernel calls that Python 3.11 does not wrap: namespaces, TUN devices, a timer with a file descriptor.

Owns nothing but the calls; who may make them, and when, is for the callers.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_CLOCK_MONOTONIC = 1
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _ItimerSpec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def set_namespace(fd: int) -> None:
    """Move the calling thread into the network namespace behind `fd`."""
    _check(_libc.setns(fd, CLONE_NEWNET), "setns")


@contextlib.contextmanager
def inside(fd: int) -> Iterator[None]:
    """Be in the network namespace behind `fd`, this thread alone; sockets made there stay there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        set_namespace(fd)
        try:
            yield
        finally:
            set_namespace(home)
    finally:
        os.close(home)


def new_namespace() -> int:
    """Make a network namespace that lives as long as the returned descriptor or a process in it."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            set_namespace(home)
    finally:
        os.close(home)


def open_tun(name: str) -> int:
    """Make a TUN device in the namespace of the calling thread; the descriptor is non-blocking, one packet a read."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(fd)
        raise
    return fd


class Timer:
    """A timerfd on the monotonic clock: finer than epoll's own milliseconds."""

    __slots__ = ("_spec", "fd")

    def __init__(self) -> None:
        self.fd = _check(_libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS), "timerfd_create")
        self._spec = _ItimerSpec()

    def at(self, when: float) -> None:
        """Become readable at `when` (time.monotonic)."""
        spec = self._spec
        seconds = int(when)
        spec.value.sec = seconds
        spec.value.nsec = int((when - seconds) * 1e9) or 1
        _libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None)

    def close(self) -> None:
        os.close(self.fd)


def be_prompt() -> str:
    """Ask for real-time scheduling, so that a busy machine does not show up as link delay; says what was got."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(10))
        return "SCHED_RR"
    except OSError:
        pass
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -15)
        return "nice -15"
    except OSError:
        return "normal"
