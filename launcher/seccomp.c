/*
 * The filter of system calls: installed by the command as its last act before execve(2), and what
 * it refuses answered and counted by init.
 *
 * A refusal that is worth telling is SECCOMP_RET_USER_NOTIF. The kernel hands init the call's
 * number and arguments, by value; init never looks into the command's memory and never lets a call
 * go on (seccomp_unotify(2) says why that could not be safe). What to answer, the filter itself
 * says: run once more on the same data, it returns the errno in the lower bits of its value, and
 * in three more the index of the argument to count by. The kernel ignores these bits.
 */
#include "launcher.h"

#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif

/* What a refusal's return value holds besides SECCOMP_RET_USER_NOTIF; seccomp/emit.py. */
#define ERRNO_BITS 0x0fffu
#define ARGUMENT_SHIFT 12
#define NO_ARGUMENT 7u

/* As many kinds of refusal as are told apart: a program can make up no end of them. */
#define KINDS 64

struct kind {
	int32_t number;
	uint32_t returned;
	uint32_t value;
	uint64_t count;
};

static struct {
	size_t length;
	int socket;   /* where the listener comes from the command, until it has */
	int listener; /* or -1 */
	size_t kinds;
	struct kind kind[KINDS];
	uint64_t uncounted;
} filter = {.socket = -1, .listener = -1};

static struct sock_filter instructions[BPF_MAXINSNS];

static int read_program(char *digits)
{
	ptrdiff_t decoded = decode_hex(digits);
	size_t size = decoded < 0 ? 0 : (size_t)decoded;

	if (size == 0 || size > sizeof instructions || size % sizeof *instructions != 0) {
		errno = EPROTO;
		return -1;
	}
	memcpy(instructions, digits, size);
	filter.length = size / sizeof *instructions;
	return 0;
}

/*
 * filter PROGRAM TOLD: before the fork, for init has the program as well, to run it, and the socket has
 * two ends then.
 */
int step_filter(const struct step *step)
{
	int pair[2];

	if (read_program((char *)step->arg[0].text) < 0)
		return -1;
	if (step->arg[1].number == 0)
		return 0;
	if (syscall(__NR_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	filter.socket = pair[0];
	state.listener_fd = pair[1];
	return 0;
}

static int install(unsigned long flags)
{
	struct sock_fprog program = {
		.len = (unsigned short)filter.length,
		.filter = instructions,
	};

	return (int)syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

/* From 5.19 on, who waits for an answer that init is at is woken by fatal signals alone. */
static int install_with_listener(void)
{
	int fd = install(SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);

	return fd < 0 && errno == EINVAL ? install(SECCOMP_FILTER_FLAG_NEW_LISTENER) : fd;
}

/*
 * From here on the command may call what the program allows. That includes
 * write(2) and exit_group(2), for a report, and sendmsg(2), where there is a listener to send. All
 * descriptors of ours end at execve(2).
 */
int step_seccomp(const struct step *step)
{
	int listener;

	(void)step;
	if (state.listener_fd < 0)
		return install(0);
	listener = install_with_listener();
	return listener < 0 ? -1 : send_descriptor(state.listener_fd, listener);
}

/* Tell whether a filter with a listener can be installed: one process has one listener at most. */
bool can_listen(void)
{
	const struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);

	instructions[0] = allow;
	filter.length = 1;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0) == 0 && install_with_listener() >= 0;
}

/* --- init's part ---------------------------------------------------------------------------- */

/* What init waits for: the listener itself, until it has come the socket that it comes over. */
int filter_descriptor(void)
{
	return filter.listener >= 0 ? filter.listener : filter.socket;
}

/* The command has sent the listener, or has ended before. */
static void receive(void)
{
	ssize_t got = receive_descriptor(filter.socket, &filter.listener);

	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	/* Asker and answerer take turns, so on one CPU. Speed alone, from 6.6 on. */
	if (filter.listener >= 0)
		ioctl(filter.listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS,
		      (void *)SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
	close(filter.socket);
	filter.socket = -1;
}

/* The 32 bits at OFFSET of the data. */
static uint32_t load(const struct seccomp_data *data, uint32_t offset)
{
	uint32_t word = 0;

	if (offset <= sizeof *data - sizeof word)
		memcpy(&word, (const char *)data + offset, sizeof word);
	return word;
}

static bool holds(const struct sock_filter *at, uint32_t accumulator)
{
	if (at->code == (BPF_JMP | BPF_JEQ | BPF_K))
		return accumulator == at->k;
	return accumulator >= at->k; /* BPF_JGE, the only other comparison that is emitted */
}

/* What the filter returns for a call. The kernel has checked that it ends. */
static uint32_t evaluate(const struct seccomp_data *data)
{
	uint32_t accumulator = 0;

	for (size_t i = 0; i < filter.length; i++) {
		const struct sock_filter *at = &instructions[i];

		if (at->code == (BPF_RET | BPF_K))
			return at->k;
		if (at->code == (BPF_LD | BPF_W | BPF_ABS))
			accumulator = load(data, at->k);
		else if (at->code == (BPF_ALU | BPF_AND | BPF_K))
			accumulator &= at->k;
		else if (at->code == (BPF_JMP | BPF_JA))
			i += at->k;
		else
			i += holds(at, accumulator) ? at->jt : at->jf;
	}
	return EPERM;
}

static void count(const struct seccomp_data *data, uint32_t returned)
{
	uint32_t argument = returned >> ARGUMENT_SHIFT & NO_ARGUMENT;
	uint32_t value = argument < 6 ? (uint32_t)data->args[argument] : 0;
	struct kind *kind = filter.kind;

	for (; kind < filter.kind + filter.kinds; kind++)
		if (kind->number == data->nr && kind->value == value &&
		    kind->returned == returned) {
			kind->count++;
			return;
		}
	if (filter.kinds == KINDS) {
		filter.uncounted++;
		return;
	}
	*kind = (struct kind){data->nr, returned, value, 1};
	filter.kinds++;
}

/*
 * Answer one refusal. Not more at a time: between two of them init looks at its deadline, its
 * supervisor and its children. ENOENT: who called has ended, or was interrupted and calls again.
 */
static void answer(void)
{
	struct seccomp_notif call = {0};
	struct seccomp_notif_resp response = {0};
	uint32_t returned;

	if (ioctl(filter.listener, SECCOMP_IOCTL_NOTIF_RECV, &call) < 0)
		return;
	returned = evaluate(&call.data);
	response.id = call.id;
	response.error = -(int32_t)(returned & ERRNO_BITS);
	if (ioctl(filter.listener, SECCOMP_IOCTL_NOTIF_SEND, &response) == 0)
		count(&call.data, returned);
}

void hear_filter(short events)
{
	if (filter.listener < 0) {
		receive();
	} else if ((events & POLLIN) != 0) {
		answer();
	} else {
		/* Nobody is left who is under the filter. */
		close(filter.listener);
		filter.listener = -1;
	}
}

/* Before the last record: one for each kind, in the order in which they came. */
uint64_t report_refusals(void)
{
	for (size_t i = 0; i < filter.kinds; i++) {
		const struct kind *kind = &filter.kind[i];
		uint32_t argument = kind->returned >> ARGUMENT_SHIFT & NO_ARGUMENT;
		struct record record = {.kind = RECORD_REFUSED};

		record.value[0] = kind->number;
		record.value[1] = kind->returned & ERRNO_BITS;
		record.value[2] = argument < 6 ? (int64_t)argument : -1;
		record.value[3] = kind->value;
		record.value[4] = (int64_t)kind->count;
		send_record(&record);
	}
	return filter.uncounted;
}
