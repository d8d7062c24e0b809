/*
 * System calls without a C library, by the names and with the results of their man pages: -1 and errno.
 *
 * A static glibc spends half a millisecond before main: it asks the CPU what it can do, and at each
 * such question (cpuid) a virtual machine stops. start.c has what comes before main.
 */
#ifndef CAPSULE_SYS_H
#define CAPSULE_SYS_H

#include <asm/ioctls.h>
#include <asm/poll.h>
#include <asm/signal.h>
#include <asm/stat.h>
#include <asm/statfs.h>
#include <asm/unistd.h>
#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/resource.h>
#include <linux/sched.h>
#include <linux/time.h>
#include <linux/types.h>
#include <linux/uio.h>
#include <linux/wait.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef __kernel_ssize_t ssize_t;
typedef __kernel_pid_t pid_t;
typedef unsigned uid_t, gid_t, mode_t;
typedef __kernel_long_t off_t;
typedef uint64_t dev_t;

/* Not C's name: a build with a C library, for the sanitizers, has one of its own. */
extern int sys_errno;
#define errno sys_errno

/* Calls younger than the oldest headers we build with; the same on every CPU. */
#ifndef __NR_mount_setattr
#define __NR_mount_setattr 442
#endif
#ifndef __NR_landlock_create_ruleset
#define __NR_landlock_create_ruleset 444
#define __NR_landlock_add_rule 445
#define __NR_landlock_restrict_self 446
#endif

/* --- the call itself, syscall(2) ------------------------------------------------------------- */

static inline long raw_call(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
			 : "memory");
	return x0;
#else
#error "the launcher is for x86_64 and aarch64"
#endif
}

static inline long checked(long result)
{
	if (result >= 0 || result < -4095)
		return result;
	errno = (int)-result;
	return -1;
}

/* syscall(NUMBER, up to six arguments, pointers or numbers): at least one, 0 where it takes none. */
#define syscall(...) FILL(__VA_ARGS__, 0, 0, 0, 0, 0, 0)
#define FILL(number, a, b, c, d, e, f, ...)                                                        \
	checked(raw_call((number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e),          \
			 (long)(f)))

/* A function with the name of its call. */
#define CALL(type, name, parameters, ...)                                                          \
	static inline type name parameters                                                         \
	{                                                                                          \
		return (type)syscall(__NR_##name, __VA_ARGS__);                                    \
	}

/* --- descriptors and files ------------------------------------------------------------------- */

CALL(int, openat, (int at, const char *path, int flags), at, path, flags)

static inline int open(const char *path, int flags)
{
	return openat(AT_FDCWD, path, flags);
}

static inline int create(int at, const char *path, int flags, mode_t mode)
{
	return (int)syscall(__NR_openat, at, path, flags | O_CREAT, mode);
}

CALL(int, close, (int fd), fd)
CALL(ssize_t, read, (int fd, void *data, size_t size), fd, data, size)
CALL(ssize_t, write, (int fd, const void *data, size_t size), fd, data, size)

static inline ssize_t pread(int fd, void *data, size_t size, off_t at)
{
	return syscall(__NR_pread64, fd, data, size, at);
}

static inline ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
	return syscall(__NR_pwrite64, fd, data, size, at);
}

CALL(int, fcntl, (int fd, int command, long argument), fd, command, argument)
CALL(int, ioctl, (int fd, unsigned long request, void *argument), fd, request, argument)

/* dup3(2), as dup2(2) does it. */
static inline int dup2(int from, int to)
{
	return from == to ? fcntl(from, F_GETFD, 0) : (int)syscall(__NR_dup3, from, to, 0);
}

CALL(int, pipe2, (int ends[2], int flags), ends, flags)
CALL(int, close_range, (unsigned first, unsigned last), first, last, 0)
CALL(int, fstat, (int fd, struct stat *file), fd, file)
CALL(int, statfs, (const char *path, struct statfs *about), path, about)
CALL(int, fstatfs, (int fd, struct statfs *about), fd, about)
CALL(int, mkdirat, (int at, const char *path, mode_t mode), at, path, mode)

static inline int mkdir(const char *path, mode_t mode)
{
	return mkdirat(AT_FDCWD, path, mode);
}

static inline int rmdir(const char *path)
{
	return (int)syscall(__NR_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
}

CALL(int, chdir, (const char *path), path)
CALL(mode_t, umask, (mode_t mask), mask)

/* linux/stat.h leaves this to a C library, where it sees one. */
static inline bool is_directory(const struct stat *file)
{
	return (file->st_mode & 0170000) == 0040000;
}

static inline bool is_device(const struct stat *file)
{
	return (file->st_mode & 0170000) == 0020000;
}

/* Milliseconds to wait at the most, -1 for any time; ppoll(2). */
static inline int poll(struct pollfd *fds, unsigned long count, int wait)
{
	struct timespec time = {wait / 1000, wait % 1000 * 1000000l};

	return (int)syscall(__NR_ppoll, fds, count, wait < 0 ? NULL : &time, NULL, 0);
}

/* --- mounts ---------------------------------------------------------------------------------- */

#define MNT_DETACH 2
#define UMOUNT_NOFOLLOW 8

CALL(int, mount, (const char *path, unsigned long flags), NULL, path, NULL, flags, NULL)
CALL(int, umount2, (const char *path, int flags), path, flags)

/* --- sockets: what the kernel's headers leave out -------------------------------------------- */

enum { AF_UNIX = 1, AF_INET = 2, AF_INET6 = 10, AF_NETLINK = 16 };
enum { SOCK_STREAM = 1, SOCK_DGRAM = 2, SOCK_RAW = 3, SOL_SOCKET = 1, SCM_RIGHTS = 1 };
enum {
	MSG_CTRUNC = 0x8,
	MSG_DONTWAIT = 0x40,
	MSG_NOSIGNAL = 0x4000,
	MSG_CMSG_CLOEXEC = 0x40000000
};
#define SOCK_CLOEXEC O_CLOEXEC

struct msghdr {
	void *msg_name;
	int msg_namelen;
	struct iovec *msg_iov;
	size_t msg_iovlen;
	void *msg_control;
	size_t msg_controllen;
	unsigned msg_flags;
};

/* A control message with one descriptor, cmsg(3). */
struct passed {
	size_t size;
	int level, type, fd;
};
#define PASSED_SIZE (offsetof(struct passed, fd) + sizeof(int))

/* --- processes ------------------------------------------------------------------------------- */

static inline _Noreturn void _exit(int status)
{
	for (;;)
		raw_call(__NR_exit_group, status, 0, 0, 0, 0, 0);
}

CALL(pid_t, getpid, (void), 0)
CALL(uid_t, getuid, (void), 0)
CALL(gid_t, getgid, (void), 0)

/* clone(2) without memory in common: a fork into namespaces. */
static inline pid_t fork_with(unsigned long flags)
{
	return (pid_t)syscall(__NR_clone, flags | SIGCHLD, 0, 0, 0, 0);
}

static inline pid_t waitpid(pid_t pid, int *status, int options)
{
	return (pid_t)syscall(__NR_wait4, pid, status, options, NULL);
}

static inline bool has_stopped(int status)
{
	return (status & 0xff) == 0x7f;
}

CALL(int, kill, (pid_t pid, int number), pid, number)
CALL(int, execve, (const char *path, char *const *arguments, char *const *environment), path,
     arguments, environment)
CALL(int, prctl, (int option, unsigned long a, unsigned long b), option, a, b)
CALL(int, setresuid, (uid_t uid), uid, uid, uid)
CALL(int, setresgid, (gid_t gid), gid, gid, gid)

static inline int drop_groups(void)
{
	return (int)syscall(__NR_setgroups, 0, NULL);
}

/* A set of signals is one word, the lowest bit for signal 1. */
static inline int set_signal_mask(uint64_t mask)
{
	return (int)syscall(__NR_rt_sigprocmask, SIG_SETMASK, &mask, NULL, sizeof mask);
}

static inline int getrlimit(int resource, struct rlimit *limit)
{
	return (int)syscall(__NR_prlimit64, 0, resource, NULL, limit);
}

static inline int setrlimit(int resource, const struct rlimit *limit)
{
	return (int)syscall(__NR_prlimit64, 0, resource, limit, NULL);
}

CALL(int, getrusage, (int who, struct rusage *usage), who, usage)
CALL(int, clock_gettime, (int clock, struct timespec *time), clock, time)

/* --- start.c --------------------------------------------------------------------------------- */

/* Zeroed memory, or NULL with errno ENOMEM; and back. */
void *allocate(size_t size);
void release(void *memory, size_t size);

/* What the kernel told the program at its start, getauxval(3). */
unsigned long getauxval(unsigned long type);

#endif
