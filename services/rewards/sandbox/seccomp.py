"""A seccomp filter as a program for the kernel (classic BPF, seccomp(2)). Pure."""

from __future__ import annotations

import struct

# How the kernel calls each machine, and the number of mmap(2) there.
_MACHINES = {"x86_64": (0xC000003E, 9), "aarch64": (0xC00000B7, 222)}
# What the code may not do, with its numbers on x86_64 and on aarch64, which lacks what clone(2) can do.
_FORBIDDEN: dict[str, tuple[int, int | None]] = {
    # Start a process or a thread.
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "clone3": (435, 435),
    # Open a socket (io_uring would too).
    "socket": (41, 198), "io_uring_setup": (425, 425),
    # Look into another process.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    # Make namespaces.
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40),
    # Hold memory that is not of its address space, and so under no limit of it.
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "io_setup": (206, 0),
    # Ask for what few have looked for holes in.
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
}  # fmt: skip
# x32 has numbers of its own for the same calls, from here on.
_X32 = 0x40000000
# Memory that is shared and of no file stays as long as a page of it is mapped: unmapping the rest frees only the
# address space.
_SHARED_AND_ANONYMOUS = 0x21
_LOAD, _AND, _EQUAL, _AT_LEAST, _ANSWER = 0x20, 0x54, 0x15, 0x35, 0x06
_KILL, _REFUSE, _ALLOW = 0x80000000, 0x00050001, 0x7FFF0000
# Offsets in the kernel's seccomp_data: the call, the machine, the lower half of the fourth argument (flags of mmap).
_CALL, _MACHINE, _FLAGS = 0, 4, 40


def program(machine: str) -> bytes:
    """What is forbidden answers EPERM; a call of another architecture ends the process. Raises ValueError for a machine
    that is not known."""
    if machine not in _MACHINES:
        raise ValueError(f"not known on {machine}")
    kernel, mmap = _MACHINES[machine]
    calls = [pair[list(_MACHINES).index(machine)] for pair in _FORBIDDEN.values()]
    numbers = [number for number in calls if number is not None]
    count = len(numbers)
    # Each line: code, how many to skip if so, how many if not, operand. The last one refuses, the one before allows.
    lines = [(_LOAD, 0, 0, _MACHINE), (_EQUAL, 1, 0, kernel), (_ANSWER, 0, 0, _KILL), (_LOAD, 0, 0, _CALL)]
    lines.append((_AT_LEAST, count + 5, 0, _X32))
    lines += [(_EQUAL, count + 4 - index, 0, number) for index, number in enumerate(numbers)]
    lines += [(_EQUAL, 0, 3, mmap), (_LOAD, 0, 0, _FLAGS), (_AND, 0, 0, _SHARED_AND_ANONYMOUS)]
    lines += [(_EQUAL, 1, 0, _SHARED_AND_ANONYMOUS), (_ANSWER, 0, 0, _ALLOW), (_ANSWER, 0, 0, _REFUSE)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
