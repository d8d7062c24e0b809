"""The default policy: what each system call may do, why not, and what would allow it. Plain data.

Each call that the headers know has one row; what is in none is new to this table and answers ENOSYS, as
on an older kernel. A call that programs have a way around answers ENOSYS as well, whatever it would do;
one that is refused to them answers EPERM.

A rule is a list of cases, read from left to right; the first that fits decides. A case is an action,
then the tests that must all hold: ``N=V`` argument N is V, ``N&M=V`` its bits M are V, ``N&~M=V`` its
other bits are. Arguments here are 32 bits wide: the kernel ignores the rest, which is the program's
to choose. The last case has no test. ``quiet`` before an action: nothing worth telling, it is a
designed fallback. ``@N`` behind one: argument N tells what was refused, and not the row's own.
``UID`` and ``GID`` as values are the ids of the command.
"""

from __future__ import annotations

# (reason, calls)
ALLOWED = (
    (
        "files: open, make, read, write, rename, remove; what is reachable is the mounts' business",
        """
        access chdir close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
        fadvise64 fallocate fchdir fdatasync flock fsync ftruncate getcwd getdents getdents64 link
        linkat lseek mkdir mkdirat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev
        pwritev2 read readahead readlink readlinkat readv rename renameat renameat2 rmdir sendfile
        splice symlink symlinkat sync sync_file_range syncfs tee truncate umask unlink unlinkat
        write writev
        """,
    ),
    (
        "attributes of files",
        """
        chmod fchmod fchmodat fchmodat2 fgetxattr file_getattr file_setattr flistxattr fremovexattr
        fsetxattr fstat fstatfs futimesat getxattr getxattrat lgetxattr listxattr listxattrat
        llistxattr lremovexattr lsetxattr lstat newfstatat removexattr removexattrat setxattr
        setxattrat stat statfs statx utime utimensat utimes
        """,
    ),
    ("the capsule's own mounts, read only: libmount asks", "listmount statmount"),
    (
        "changes of files: file watchers",
        "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch",
    ),
    (
        "pipes, events and waiting for them",
        """
        epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2
        pipe pipe2 poll ppoll pselect6 select signalfd signalfd4 timerfd_create timerfd_gettime
        timerfd_settime
        """,
    ),
    (
        "asynchronous files: databases, qemu",
        "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit",
    ),
    (
        "sockets of the families that may be made",
        """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg
        recvmsg sendmmsg sendmsg sendto setsockopt shutdown
        """,
    ),
    (
        "own memory; that it may be both written and executed is what compilers at run time need",
        """
        brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap
        mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
        process_madvise process_mrelease
        """,
    ),
    ("where own memory lies: numpy, JVM", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (
        "processes and threads; new ones stay in the namespaces",
        """
        arch_prctl execve execveat exit exit_group fork get_robust_list getcpu getpgid getpgrp
        getpid getppid getsid gettid pidfd_open pidfd_send_signal restart_syscall rseq
        rseq_slice_yield set_robust_list set_tid_address setpgid setsid uname vfork wait4 waitid
        """,
    ),
    (
        "identity: without a capability there is none to gain",
        """
        capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid
        setgid setgroups setregid setresgid setresuid setreuid setuid
        """,
    ),
    (
        "signals: within the PID namespace",
        """
        alarm kill pause rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
        rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sigaltstack tgkill tkill
        """,
    ),
    ("locks between threads", "futex futex_requeue futex_wait futex_waitv futex_wake"),
    (
        "time, read only",
        """
        clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time
        timer_create timer_delete timer_getoverrun timer_gettime timer_settime times
        """,
    ),
    (
        "scheduling and resources, within the limits that are set",
        """
        getpriority getrlimit getrusage ioprio_get ioprio_set prlimit64 sched_get_priority_max
        sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
        sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler
        sched_yield setpriority setrlimit sysinfo
        """,
    ),
    ("random numbers", "getrandom"),
    (
        "System V IPC and message queues of the own IPC namespace: Postgres, multiprocessing",
        """
        mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv
        msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget
        """,
    ),
    (
        "a program may confine itself further",
        "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp",
    ),
    (
        (
            "only trampolines of the kernel's tracing call them, and only where it was put there from "
            "outside"
        ),
        "uprobe uretprobe",
    ),
)

# (errno, whether it is worth telling, profile that allows them, reason, calls)
REFUSED = (
    (
        "EPERM",
        True,
        "nest",
        "namespaces are the door to most of the kernel's attack surface",
        "setns unshare",
    ),
    (
        "ENOSYS",
        False,
        "",
        "its flags lie in memory, where no filter can read them; libc falls back to clone",
        "clone3",
    ),
    ("EPERM", True, "nest", "changes what is mounted", "mount pivot_root umount2"),
    ("EPERM", True, "nest", "the classic way out of a directory; needs a capability", "chroot"),
    (
        "ENOSYS",
        False,
        "",
        "the mount interface by descriptors: as if it was not there, so that the other one is tried",
        "fsconfig fsmount fsopen fspick mount_setattr move_mount open_tree open_tree_attr",
    ),
    ("ENOSYS", False, "", "lists namespaces", "listns"),
    ("EPERM", True, "", "opens files past the directories above them", "open_by_handle_at"),
    (
        "EOPNOTSUPP",
        False,
        "",
        (
            "names files past the directories above them; programs take it for a file system without "
            "handles"
        ),
        "name_to_handle_at",
    ),
    ("EPERM", True, "", "programs in the kernel", "bpf"),
    ("EPERM", True, "", "watches the processor and the kernel", "perf_event_open"),
    (
        "EPERM",
        True,
        "",
        "stops the kernel in the middle of an access, which makes races certain",
        "userfaultfd",
    ),
    (
        "ENOSYS",
        False,
        "",
        "does what other calls do without being seen by a filter; programs fall back",
        "io_uring_enter io_uring_register io_uring_setup",
    ),
    ("EPERM", True, "", "keyrings belong to no namespace", "add_key request_key"),
    ("ENOSYS", False, "", "keyrings belong to no namespace; programs go on without", "keyctl"),
    (
        "EPERM",
        True,
        "debug",
        "reaches into other processes",
        "process_vm_readv process_vm_writev ptrace",
    ),
    ("EPERM", True, "", "takes descriptors out of other processes", "pidfd_getfd"),
    ("EPERM", True, "debug", "compares objects of the kernel, and so tells where they lie", "kcmp"),
    ("EPERM", True, "", "segments of 16-bit programs", "modify_ldt"),
    ("EPERM", True, "", "sets the host's clock", "adjtimex clock_adjtime clock_settime settimeofday"),
    ("EPERM", True, "", "moves memory of other processes", "migrate_pages move_pages"),
    (
        "EPERM",
        True,
        "",
        "puts pages of a process into pipes, as attacks on the page cache do; hardly used",
        "vmsplice",
    ),
    ("ENOSYS", False, "", "tells which pages of a file others have read", "cachestat"),
    ("EPERM", True, "", "reads and clears the kernel's log", "syslog"),
    ("EPERM", True, "", "quotas of the host's file systems", "quotactl quotactl_fd"),
    (
        "EPERM",
        True,
        "",
        "administers the machine",
        """
        acct delete_module finit_module init_module ioperm iopl kexec_file_load kexec_load reboot
        swapoff swapon
        """,
    ),
    ("EPERM", True, "nest", "names the machine", "setdomainname sethostname"),
    ("EPERM", True, "", "events of whole file systems of the host", "fanotify_init fanotify_mark"),
    ("ENOSYS", False, "", "memory that can neither be swapped nor accounted for", "memfd_secret"),
    (
        "ENOSYS",
        False,
        "",
        "settings of security modules",
        "lsm_get_self_attr lsm_list_modules lsm_set_self_attr",
    ),
    (
        "ENOSYS",
        False,
        "",
        "dead: no program needs it, or no kernel has it",
        """
        _sysctl afs_syscall create_module epoll_ctl_old epoll_wait_old get_kernel_syms
        get_thread_area getpmsg lookup_dcookie nfsservctl putpmsg query_module remap_file_pages
        security set_thread_area sysfs tuxcall uselib ustat vhangup vserver
        """,
    ),
)

# The argument that tells one refusal of a call above from another, by call.
DECIDING = """
bpf 0 clock_adjtime 0 clock_settime 0 kcmp 2 modify_ldt 0 ptrace 0 quotactl 0 quotactl_fd 1 setns 1
syslog 0 unshare 0
"""

# The kernel's own answer to an id that the namespace does not have: made here so that it is told.
_OWNER = """
allow {0}=UID {1}=GID; allow {0}=UID {1}=0xffffffff; allow {0}=0xffffffff {1}=GID;
allow {0}=0xffffffff {1}=0xffffffff; EINVAL@{1} {0}=UID; EINVAL@{1} {0}=0xffffffff; EINVAL@{0}
"""
_OWNER_REASON = "only the mapped ids exist; any other is EINVAL, filter or not"
PRETEND = "--pretend-chown"

# (calls, rule, the argument that matters, profile or option that allows more, reason)
CHECKED = (
    ("chown fchown lchown", _OWNER.format(1, 2), 1, PRETEND, _OWNER_REASON),
    ("fchownat", _OWNER.format(2, 3), 2, PRETEND, _OWNER_REASON),
    (
        "clone",
        "allow 0&0x7e020000=0; EPERM",
        0,
        "nest",
        "threads and processes, but no namespace: none of the seven CLONE_NEW flags",
    ),
    # Type 1 is SOCK_STREAM, 2 SOCK_DGRAM, 3 SOCK_RAW, 10 SOCK_PACKET; families 2 and 10 are INET
    # and INET6. Protocols of datagrams: any, UDP, and ping of either family.
    (
        "socket",
        """
        allow 0=1; allow 0&~8=2 1&15=1 2=0; allow 0&~8=2 1&15=1 2=6; allow 0&~8=2 1&15=2 2=0;
        allow 0&~8=2 1&15=2 2=17; allow 0&~8=2 1&15=2 2=1; allow 0&~8=2 1&15=2 2=58;
        EPERM@1 0&~8=2 1&15=3; EPERM@1 0&~8=2 1&15=10; quiet EPROTONOSUPPORT 0&~8=2; allow 0=16 2=0;
        quiet EPROTONOSUPPORT 0=16; EAFNOSUPPORT
        """,
        0,
        "",
        (
            "UNIX, INET, INET6 with TCP, UDP and ping, NETLINK for routes; every other family or "
            "protocol is code of the kernel that few need and that was broken often"
        ),
    ),
    ("socketpair", "allow 0=1; EAFNOSUPPORT", 0, "", "pairs of UNIX sockets"),
    # TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD
    (
        "ioctl",
        "EPERM 1=0x5412; EPERM 1=0x541c; EPERM 1=0x541d; EPERM 1=0x5423; allow",
        1,
        "",
        "not TIOCSTI and TIOCLINUX, which type into a terminal, nor TIOCCONS and TIOCSETD",
    ),
    # F_SETLEASE, F_NOTIFY
    (
        "fcntl",
        "EPERM 1=1024; EPERM 1=1026; allow",
        1,
        "",
        "not F_SETLEASE and F_NOTIFY: a lease makes the host's own opens wait",
    ),
    # PR_SET_MM
    ("prctl", "EPERM 0=35; allow", 0, "", "not PR_SET_MM: the kernel's idea of the program's memory"),
    (
        "personality",
        "allow 0=0; allow 0=8; allow 0=0x20000; allow 0=0x20008; allow 0=0xffffffff; EPERM",
        0,
        "debug",
        "Linux, with 32 bits in uname, and the question; not what weakens the protection of memory",
    ),
    (
        "mknod",
        "allow 1&0xf000=0; allow 1&0xf000=0x8000; allow 1&0xf000=0x1000; allow 1&0xf000=0xc000; EPERM",
        1,
        "",
        "files, FIFOs and sockets; no devices",
    ),
    (
        "mknodat",
        "allow 2&0xf000=0; allow 2&0xf000=0x8000; allow 2&0xf000=0x1000; allow 2&0xf000=0xc000; EPERM",
        2,
        "",
        "files, FIFOs and sockets; no devices",
    ),
)

# What the other profiles have instead. Rows as in CHECKED; a rule may be one action.
CHANGED = {
    "strict": (
        ("splice tee", "EPERM", None, "", "moves pages between files and pipes: speed alone"),
        ("listmount statmount", "quiet ENOSYS", None, "", "what is mounted"),
        ("flock", "EPERM", None, "", "locks on files that are shared with the host are felt there"),
        (
            """
            mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget
            msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget
            """,
            "EPERM",
            None,
            "",
            "System V IPC and message queues: memory that outlives its process",
        ),
        ("socket", "EAFNOSUPPORT", 0, "", "no sockets; pairs of UNIX sockets are left"),
        # TCP_ULP, UDP_ENCAP, and the tables of netfilter
        (
            "setsockopt",
            """
            EPERM 1=6 2=31; EPERM 1=17 2=100; EPERM 1=0 2=64; EPERM 1=0 2=65; EPERM 1=0 2=66;
            EPERM 1=41 2=64; EPERM 1=41 2=65; EPERM 1=41 2=66; allow
            """,
            1,
            "",
            "not what loads other protocols into a socket, nor the tables of the packet filter",
        ),
    ),
    "debug": (
        (
            "kcmp process_vm_readv process_vm_writev ptrace",
            "allow",
            None,
            "",
            "debuggers: gdb, strace, rr, the leak sanitizer",
        ),
        (
            "personality",
            """
            allow 0=0; allow 0=8; allow 0=0x20000; allow 0=0x20008; allow 0=0x40000;
            allow 0=0xffffffff; EPERM
            """,
            0,
            "",
            "also addresses that are not random: gdb, setarch -R",
        ),
    ),
    "nest": (
        (
            "chroot clone mount pivot_root setdomainname sethostname setns umount2 unshare",
            "allow",
            None,
            "",
            "sandboxes inside: weaker, about three times as much of the kernel is within reach",
        ),
    ),
}

PROFILES = ("default", *CHANGED, "off")
