/*
 * The launcher: what must happen between the supervisor's spawn and the command's first
 * instruction.
 *
 *	supervisor  (Python, host)   decides; holds the lifeline and a pidfd of init
 *	 ├─ launcher (this, host)    reads the plan, clones init, writes the id maps, ends
 *	 └─ init     (PID 1 inside)  init.c: mounts, network, hostname; forks; reaps; reports
 *	     └─ command              command.c: what cannot be undone, then execve
 *
 * It performs the plan's steps one by one and decides nothing. The first step that fails is
 * reported on the error pipe as (step, errno), and everything dies. There are no options, no
 * environment and no configuration. Every descriptor that the plan does not name is closed before
 * the first step.
 */
#include "launcher.h"

#include <limits.h>

#define STEP(function, word, phases, signature) {word, phases, signature, step_##function},
const struct step_kind step_kinds[] = {
#include "steps.def"
};
#undef STEP
const size_t step_kind_count = sizeof step_kinds / sizeof step_kinds[0];

struct state state = {.proc = -1,
		      .go = -1,
		      .cgroup = -1,
		      .cpu_stat = -1,
		      .slave = -1,
		      .signals = -1,
		      .ruleset = -1,
		      .error_fd = ERROR_FD,
		      .listener_fd = -1};

_Noreturn void fail(int step, int error)
{
	int32_t report[2] = {(int)state.before + step, error};

	(void)!write(state.error_fd, report, sizeof report);
	_exit(EXIT_SETUP);
}

void run_steps(size_t from, size_t to)
{
	for (size_t i = from; i < to; i++) {
		const struct step *step = &state.plan->step[i];

		if (step->kind->run(step) < 0)
			fail((int)i, errno);
	}
}

int send_record(const struct record *record)
{
	return write_all(STATUS_FD, record, sizeof *record);
}

/*
 * Set close-on-exec on our own descriptors: a command that held the error pipe could forge reports.
 */
static int secure_descriptors(void)
{
	for (int fd = PLAN_FD; fd <= SUPERVISOR_FD; fd++)
		if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
			return -1;
	for (int fd = GIFT_FD; fd < FIRST_USER_FD; fd++)
		if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 && errno != EBADF)
			return -1;
	for (int fd = 0; fd <= 2; fd++)
		if (fcntl(fd, F_GETFD, 0) < 0)
			return -1;
	return 0;
}

int load_plan(struct plan *plan, int fd, uint64_t size, enum phase first)
{
	char *text = NULL;

	errno = E2BIG;
	if (size > 0 && size <= PLAN_MAX)
		text = allocate(size);
	if (text == NULL)
		return -1;
	for (size_t done = 0; done < size;) {
		/* Who wrote the file has left its offset at the end. */
		ssize_t got = first == LAUNCH ? pread(fd, text + done, size - done, (off_t)done)
					      : read(fd, text + done, size - done);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0) {
			errno = got == 0 ? EPROTO : errno;
			return -1;
		}
		done += (size_t)got;
	}
	errno = plan_parse(plan, text, size, first);
	return errno == 0 ? 0 : -1;
}

/*
 * The file is private to the supervisor, but its size is checked before and after all the same: what was
 * checked is what is parsed.
 */
static int read_plan(struct plan *plan)
{
	struct stat file;

	if (fstat(PLAN_FD, &file) < 0 ||
	    load_plan(plan, PLAN_FD, (uint64_t)file.st_size, LAUNCH) < 0)
		return -1;
	close(PLAN_FD);
	return 0;
}

/* Whether the plan hands descriptor FD to the command. */
static bool is_named(const struct plan *plan, uint64_t fd)
{
	for (size_t i = 0; i < plan->count; i++)
		if (plan->step[i].kind->run == step_descriptor && plan->step[i].arg[0].number == fd)
			return true;
	return false;
}

/* Close all but 0-2, our own and the named ones, which lie at FIRST_USER_FD and above. */
static int close_others(const struct plan *plan)
{
	uint64_t last = FIRST_USER_FD - 1;

	for (size_t i = 0; i < plan->count; i++)
		if (plan->step[i].kind->run == step_descriptor &&
		    plan->step[i].arg[0].number > last)
			last = plan->step[i].arg[0].number;
	if (last > INT_MAX) {
		errno = EPROTO;
		return -1;
	}
	for (uint64_t fd = FIRST_USER_FD; fd <= last; fd++)
		if (!is_named(plan, fd))
			close((int)fd);
	return close_range((unsigned)last + 1, ~0u);
}

/* Undo what the supervisor's process may have set: exec keeps ignored signals and the mask. */
static void reset_signals(void)
{
	/* The kernel's own structure, all zero: SIG_DFL, no flags, no mask. */
	const unsigned long by_default[4] = {0};

	/* 32 and 33, too, which glibc's posix_spawn(3) leaves ignored. */
	for (int number = 1; number <= 64; number++)
		syscall(__NR_rt_sigaction, number, by_default, NULL, sizeof(uint64_t));
	set_signal_mask(~0ull);
}

int main(void)
{
	static struct plan plan;
	size_t end;

	/* Nothing can be reported without the pipes. */
	if (secure_descriptors() < 0)
		_exit(EXIT_SETUP);
	reset_signals();
	state.umask = umask(0);
	if (read_plan(&plan) < 0 || close_others(&plan) < 0)
		fail(-1, errno);
	state.plan = &plan;
	end = plan_phase_end(&plan, 0, LAUNCH);
	run_steps(0, end);
	/* Init waits for this: the maps are complete. Without a reader, init has failed and said why. */
	if (state.go >= 0)
		(void)!write(state.go, "", 1);
	_exit(0);
}
