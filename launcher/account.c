/*
 * What the capsule has used so far, for the limits that the kernel does not keep by itself: CPU
 * time of the whole tree, idleness and, where there is no cgroup, memory.
 *
 * Init looks, and not the supervisor: whoever holds that may be busy with other things. It looks at
 * its own /proc, which shows the capsule and nothing else.
 */
#include "launcher.h"

#include <linux/auxvec.h>

int64_t clock_ns(int clock)
{
	struct timespec now = {0};

	clock_gettime(clock, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

int64_t microseconds(struct __kernel_old_timeval time)
{
	return (int64_t)time.tv_sec * 1000000 + time.tv_usec;
}

#define MS 1000000ll

/* How often to look at the soonest and at the latest, and for memory, which grows quickly. */
enum { SOONEST_MS = 5, LATEST_MS = 1000, MEMORY_MS = 50 };

static struct {
	uint64_t cpu_us, cpus; /* limit of CPU time, and how many CPUs can use it up at once */
	uint64_t idle_ms;
	uint64_t memory;
	int64_t next;	/* when to look again */
	int64_t active; /* when something was last seen to run */
	uint64_t seen;	/* CPU time at that look */
} limit;

struct account {
	uint64_t cpu_ns; /* exact for what lives, to a clock tick for who was waited for */
	uint64_t user_us, system_us;
	uint64_t bytes, most_bytes; /* resident: of all, a shared page in each; of the largest */
	uint64_t threads;
};

int step_cpu_time(const struct step *step)
{
	limit.cpu_us = step->arg[0].number;
	limit.cpus = step->arg[1].number;
	return 0;
}

void limit_run(const struct begin *begin)
{
	limit.cpu_us = begin->cpu_us;
	limit.cpus = begin->cpus;
	limit.idle_ms = begin->idle_ms;
}

int step_idle(const struct step *step)
{
	limit.idle_ms = step->arg[0].number;
	return 0;
}

int step_watch_memory(const struct step *step)
{
	limit.memory = step->arg[0].number;
	return 0;
}

/* The beginning of a file of /proc/PID as text; "" if the process is gone. */
static void read_text(int proc, const char *pid, const char *name, char *text, size_t size)
{
	char path[64];
	cleanup_fd int fd = -1;
	ssize_t got = -1;

	if (join(path, sizeof path, pid, "/", name, NULL) == 0)
		fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		got = read(fd, text, size - 1);
	text[got < 0 ? 0 : got] = '\0';
}

/* Nanoseconds that a process has run, all its threads together; 0 if it is gone. */
static uint64_t clock_of(pid_t pid)
{
	const int sched = 2; /* CPUCLOCK_SCHED, of those that clock_getcpuclockid(3) makes */

	return (uint64_t)clock_ns((int)(~(unsigned)pid << 3) | sched);
}

/* The fields of proc_pid_stat(5), counted from the first behind the name. */
enum { USER = 11, SYSTEM, WAITED_USER, WAITED_SYSTEM, THREADS = 17, PAGES = 21, FIELDS };

/* Those behind the name. It is whatever the process likes, but what follows it has no bracket. */
static bool read_fields(const char *stat, uint64_t fields[FIELDS])
{
	const char *at = strrchr(stat, ')');

	if (at == NULL)
		return false;
	for (size_t i = 0; i < FIELDS; i++) {
		at = memchr(at, ' ', strlen(at));
		if (at == NULL)
			return false;
		at++;
		fields[i] = to_number(at);
	}
	return true;
}

static uint64_t ticks_to_us(uint64_t ticks)
{
	return ticks * (1000000u / getauxval(AT_CLKTCK));
}

static void add_process(int proc, const char *pid, struct account *sum)
{
	char text[1024];
	uint64_t field[FIELDS], waited, bytes;

	read_text(proc, pid, "stat", text, sizeof text);
	if (!read_fields(text, field))
		return;
	waited = ticks_to_us(field[WAITED_USER] + field[WAITED_SYSTEM]);
	sum->user_us += ticks_to_us(field[USER] + field[WAITED_USER]);
	sum->system_us += ticks_to_us(field[SYSTEM] + field[WAITED_SYSTEM]);
	sum->cpu_ns += clock_of((pid_t)to_number(pid)) + waited * 1000;
	bytes = field[PAGES] * getauxval(AT_PAGESZ);
	sum->threads += field[THREADS];
	sum->bytes += bytes;
	sum->most_bytes = bytes > sum->most_bytes ? bytes : sum->most_bytes;
}

static void add_waited_for(struct account *sum)
{
	struct rusage usage;
	uint64_t user, system;

	getrusage(RUSAGE_CHILDREN, &usage);
	user = (uint64_t)microseconds(usage.ru_utime);
	system = (uint64_t)microseconds(usage.ru_stime);
	sum->user_us += user;
	sum->system_us += system;
	sum->cpu_ns += (user + system) * 1000;
}

/* getdents64(2) */
struct dirent {
	uint64_t inode;
	int64_t next;
	uint16_t size;
	uint8_t type;
	char name[];
};

/* Call VISIT for every process but init itself. */
static void each_process(void (*visit)(int, const char *, struct account *), struct account *sum)
{
	cleanup_fd int proc = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	static _Alignas(struct dirent) char entries[1 << 14];
	long size, at;

	while ((size = syscall(__NR_getdents64, proc, entries, sizeof entries)) > 0)
		for (at = 0; at < size; at += ((struct dirent *)(void *)(entries + at))->size) {
			const char *name = ((struct dirent *)(void *)(entries + at))->name;

			if (to_number(name) > 1)
				visit(proc, name, sum);
		}
}

/*
 * Who ends between two of these looks is missing from one of them, or in both; the next is right.
 */
static struct account account(void)
{
	struct account sum = {0};

	each_process(add_process, &sum);
	add_waited_for(&sum);
	return sum;
}

/* What of a process is its own, shared pages divided by those who share them; else all of it. */
static void add_share(int proc, const char *pid, struct account *sum)
{
	char text[1024];
	const char *line;

	read_text(proc, pid, "smaps_rollup", text, sizeof text);
	line = strstr(text, "\nPss:");
	if (line != NULL)
		sum->bytes += to_number(line + 5) * 1024;
	else
		add_process(proc, pid, sum);
}

/* The plain sum is never below the true one, and cheap: most looks end with it. */
static bool memory_met(const struct account *seen)
{
	struct account shares = {0};

	if (seen->bytes <= limit.memory)
		return false;
	each_process(add_share, &shares);
	return shares.bytes > limit.memory;
}

/* Microseconds that the whole tree used: of the cgroup if there is one. */
static uint64_t cpu_used(const struct account *seen)
{
	static const char first[] = "usage_usec ";
	char text[64] = "";

	if (state.cpu_stat < 0)
		return seen->cpu_ns / 1000;
	if (pread(state.cpu_stat, text, sizeof text - 1, 0) <= 0 ||
	    strncmp(text, first, sizeof first - 1) != 0)
		return account().cpu_ns / 1000;
	return to_number(text + sizeof first - 1);
}

/* All CPUs together need at least this long for what is left. */
static int64_t cpu_wait(uint64_t used)
{
	return (int64_t)((limit.cpu_us - used) / limit.cpus / 1000);
}

static int64_t sooner(int64_t one, int64_t other)
{
	return one < other ? one : other;
}

/* Ten times as long as the look itself took, at least: a thousand processes are not to be looked at
 * without end. */
static void look_again_in(int64_t ms, int64_t began)
{
	int64_t now = now_ns(), least = (now - began) / MS * 10;

	least = least < SOONEST_MS ? SOONEST_MS : least;
	limit.next = now + (ms < least ? least : ms) * MS;
}

static bool idle_met(const struct account *seen, int64_t now)
{
	if (limit.active == 0 || seen->cpu_ns != limit.seen) {
		limit.active = now;
		limit.seen = seen->cpu_ns;
	}
	return now - limit.active >= (int64_t)limit.idle_ms * MS;
}

int account_wait(void)
{
	int64_t left = limit.next - now_ns();

	if (limit.cpu_us == 0 && limit.idle_ms == 0 && limit.memory == 0)
		return -1;
	return left <= 0 ? 0 : (int)((left + MS - 1) / MS);
}

bool account_met(enum end_reason *reason)
{
	int64_t began = now_ns(), next = LATEST_MS;
	struct account seen = {0};

	if (account_wait() != 0)
		return false;
	/* The cgroup's account of CPU time needs no look at each process. */
	if (limit.idle_ms != 0 || limit.memory != 0 || state.cpu_stat < 0)
		seen = account();
	if (limit.cpu_us != 0) {
		uint64_t used = cpu_used(&seen);

		*reason = END_CPU_TIME;
		if (used >= limit.cpu_us)
			return true;
		next = sooner(next, cpu_wait(used));
	}
	if (limit.idle_ms != 0) {
		*reason = END_IDLE;
		if (idle_met(&seen, began))
			return true;
		next = sooner(next, (int64_t)limit.idle_ms / 10);
	}
	if (limit.memory != 0) {
		*reason = END_MEMORY;
		if (memory_met(&seen))
			return true;
		next = sooner(next, MEMORY_MS);
	}
	look_again_in(next, began);
	return false;
}

int report_usage(void)
{
	struct account seen = account();
	const struct record record = {
		.kind = RECORD_USAGE,
		.value = {(int64_t)seen.user_us, (int64_t)seen.system_us, (int64_t)seen.most_bytes,
			  (int64_t)seen.bytes, (int64_t)seen.threads},
	};

	return send_record(&record);
}
