/*
 * A capsule that is made before its command is known: its process waits for the rest of its plan, with
 * the filter in force where that allows what comes then. Nothing foreign has ever run in it.
 */
#include "launcher.h"

#include <limits.h>

/* What comes with the rest, or nothing: the three standard descriptors, then those to be passed on. */
enum { STDIO = 3, MOST = 253 /* SCM_MAX_FD */ };

struct handed {
	size_t size;
	int level, type;
	int fd[MOST];
};

/* How many descriptors came, and the plan's SIZE. */
static ssize_t receive_handed(struct handed *handed, uint64_t *size)
{
	struct iovec data = {.iov_base = size, .iov_len = sizeof *size};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = handed,
		.msg_controllen = sizeof *handed,
	};
	const size_t least = offsetof(struct handed, fd[STDIO]);
	ssize_t got;

	do {
		got = syscall(__NR_recvmsg, GIFT_FD, &message, MSG_CMSG_CLOEXEC);
	} while (got < 0 && errno == EINTR);
	if (got == 0)
		_exit(EXIT_SETUP); /* the supervisor has let go of this capsule */
	if (got < 0)
		return -1;
	if (message.msg_controllen == 0)
		handed->size = offsetof(struct handed, fd);
	else if (handed->size < least || handed->type != SCM_RIGHTS)
		got = 0;
	if (got != sizeof *size || (message.msg_flags & MSG_CTRUNC) != 0) {
		errno = EPROTO;
		return -1;
	}
	return (ssize_t)((handed->size - offsetof(struct handed, fd)) / sizeof(int));
}

/* Move *FD above TOP, and close it where it was. */
static int move_above(int *fd, int top)
{
	int moved;

	if (*fd < 0 || *fd > top)
		return 0;
	moved = fcntl(*fd, F_DUPFD_CLOEXEC, top + 1);
	if (moved < 0 || close(*fd) < 0)
		return -1;
	*fd = moved;
	return 0;
}

/* The steps that pass descriptors on, which follow each other; as many as came, or NULL. */
static const struct step *passing(const struct plan *plan, size_t count)
{
	size_t first = plan->count, found = 0;

	for (size_t i = 0; i < plan->count; i++) {
		const struct step *step = &plan->step[i];

		if (step->kind->run != step_descriptor)
			continue;
		if (found++ == 0)
			first = i;
		if (i != first + found - 1 || step->arg[0].number < FIRST_USER_FD ||
		    step->arg[0].number >= INT_MAX)
			return NULL;
	}
	return found == count ? plan->step + first : NULL;
}

/* Put each of COUNT descriptors where its step looks for it: as if it had been there from the start. */
static int place_passed(const struct step *step, int *fd, size_t count)
{
	int top = 0;

	for (size_t i = 0; i < count; i++)
		top = (int)step[i].arg[0].number > top ? (int)step[i].arg[0].number : top;
	/* The steps before may have opened something there. */
	if (move_above(&state.ruleset, top) < 0 || move_above(&state.listener_fd, top) < 0)
		return -1;
	for (size_t i = 0; i < count; i++)
		if (move_above(&fd[i], top) < 0)
			return -1;
	for (size_t i = 0; i < count; i++)
		if (dup2(fd[i], (int)step[i].arg[0].number) < 0 || close(fd[i]) < 0)
			return -1;
	return 0;
}

/* What COUNT descriptors are for. Those that the capsule was made with stay where none came. */
static int place(const struct plan *plan, int *fd, size_t count)
{
	size_t passed = count < STDIO ? 0 : count - STDIO;
	const struct step *step = passing(plan, passed);

	if (step == NULL) {
		errno = EPROTO;
		return -1;
	}
	for (int to = 0; to < STDIO && count > 0; to++)
		if (dup2(fd[to], to) < 0 || close(fd[to]) < 0)
			return -1;
	return place_passed(step, fd + STDIO, passed);
}

/*
 * Wait for the rest of the plan, and go on with it. Its steps are counted on from those before: a report
 * about one of them names its place in the whole.
 */
int step_rest(const struct step *step)
{
	const struct record waiting = {.kind = RECORD_WAITING, .value = {1}};
	static struct handed handed;
	static struct plan rest;
	uint64_t size = 0;
	ssize_t count;

	(void)step;
	if (send_record(&waiting) < 0)
		return -1;
	count = receive_handed(&handed, &size);
	if (count < 0 || load_plan(&rest, GIFT_FD, size, COMMAND) < 0)
		return -1;
	if (place(&rest, handed.fd, (size_t)count) < 0)
		return -1;
	state.before = state.plan->count;
	state.plan = &rest;
	return 0;
}

/* As many looks take some 20 microseconds, in which the word mostly comes; to be woken takes longer. */
#define LOOKS 64

/*
 * Wait for one more byte. All is ready then, while the supervisor has looked whether this capsule is what
 * it would make now; if not, it lets go of it.
 */
int step_go(const struct step *step)
{
	ssize_t got = -1;
	char byte;

	(void)step;
	for (int i = 0; i < LOOKS && got < 0; i++)
		got = syscall(__NR_recvfrom, GIFT_FD, &byte, 1, MSG_DONTWAIT, NULL, NULL);
	while (got < 0 && (errno == EAGAIN || errno == EINTR))
		got = read(GIFT_FD, &byte, 1);
	if (got == 0)
		_exit(EXIT_SETUP);
	return got < 0 ? -1 : 0;
}
