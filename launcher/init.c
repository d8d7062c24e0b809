/*
 * PID 1 of the capsule.
 *
 * It builds the view, forks the command and then waits for six things at once: its children, the
 * supervisor's word, the supervisor's death, the deadline, what the filter refuses and who asks for
 * sockets. When the command ends, everything ends. It was executed from a file of its own and is not
 * dumpable: nothing of the caller is in its memory, and nobody inside may look.
 */
#include "launcher.h"

#include <limits.h>
#include <linux/prctl.h>
#include <linux/signalfd.h>

/*
 * A byte of the lifeline is a signal's number, with this bit if it is for the whole process group.
 */
#define TO_GROUP 0x80

/* Or this, which is no signal's. */
#define BEGIN 65

/* How many are taken before init looks at the deadline again: they may be made without end. */
#define AT_ONCE 64

int step_undumpable(const struct step *step)
{
	(void)step;
	return prctl(PR_SET_DUMPABLE, 0, 0);
}

int step_session(const struct step *step)
{
	(void)step;
	return syscall(__NR_setsid, 0) < 0 ? -1 : 0;
}

int step_deadline(const struct step *step)
{
	state.deadline_ms = step->arg[0].number;
	return 0;
}

struct watch {
	int status; /* the command's wait status, once it ended */
	bool ended;
	bool stop_told; /* since the supervisor's last word: a flood cannot fill the pipe */
	bool behind;	/* there may be more to take, of which poll(2) will not tell again */
};

static void note_child(struct watch *watch, pid_t pid, int status)
{
	struct record stopped = {.kind = RECORD_STOPPED};

	if (pid != state.command)
		return;
	if (!has_stopped(status)) {
		watch->status = status;
		watch->ended = true;
	} else if (!watch->stop_told) {
		stopped.value[0] = status >> 8;
		watch->stop_told = send_record(&stopped) == 0;
	}
}

/* Take children that are ready, or with BLOCK set every child there is. Whether one is left: where
 * they end faster than they can be taken, there is always one more. */
static bool reap(struct watch *watch, bool block)
{
	for (int taken = 0; block || taken < AT_ONCE; taken++) {
		int status;
		pid_t pid = waitpid(-1, &status, block ? 0 : WNOHANG | WUNTRACED);

		if (pid > 0)
			note_child(watch, pid, status);
		else if (pid == 0 || errno != EINTR)
			return pid == 0;
	}
	watch->behind = true;
	return true;
}

/* Whether the command ended as one does that writes to shared memory of which there is none left:
 * the kernel has no other way to refuse what is mapped already. A shell tells of it by its status. */
static bool has_met_full_memory(int status)
{
	const bool by_signal = (status & 0x7f) == SIGBUS, by_shell = status == (128 + SIGBUS) << 8;
	struct statfs now;

	return (by_signal || by_shell) && statfs("/dev/shm", &now) == 0 && now.f_blocks > 0 &&
	       now.f_bavail == 0;
}

/*
 * The end: kill all, reap all, and say how it went. Once each process has been waited for, what
 * RUSAGE_CHILDREN holds is the account of the whole tree.
 */
static _Noreturn void end(struct watch *watch, enum end_reason reason)
{
	int64_t wall = now_ns() - state.started;
	struct record record = {.kind = RECORD_ENDED};
	const struct record ending = {.kind = RECORD_ENDING};
	struct rusage usage;

	/*
	 * Who loses its parent becomes our child: without a child we are alone. Then nobody need be
	 * killed, for which the kernel looks at every process of the host.
	 */
	if (reap(watch, false)) {
		send_record(&ending);
		kill(-1, SIGKILL);
		reap(watch, true);
	}
	getrusage(RUSAGE_CHILDREN, &usage);
	record.value[0] = watch->status;
	record.value[1] = reason;
	record.value[2] = wall / 1000;
	record.value[3] = microseconds(usage.ru_utime);
	record.value[4] = microseconds(usage.ru_stime);
	record.value[5] = usage.ru_maxrss;
	record.value[6] = usage.ru_minflt;
	record.value[7] = usage.ru_majflt;
	record.value[8] = usage.ru_nvcsw;
	record.value[9] = usage.ru_nivcsw;
	record.value[10] = (int64_t)report_refusals();
	send_record(&record);
	_exit(0);
}

/*
 * The run of a capsule that was made ahead begins: its limits of time count from here on. This is sent
 * before what the command gets, in one write(2), into a pipe that was empty.
 */
static void begin_run(const unsigned char *text, size_t size)
{
	struct begin begin;

	if (size < sizeof begin)
		_exit(EXIT_SETUP);
	memcpy(&begin, text, sizeof begin);
	if (begin.deadline_ms != 0)
		state.deadline_ms = (uint64_t)now_ns() / 1000000 + begin.deadline_ms;
	limit_run(&begin);
}

/*
 * Bytes of the lifeline are signals to pass on, 0 asks for an account, BEGIN is followed by limits of
 * time; its end is the supervisor's.
 */
static void hear_supervisor(struct watch *watch)
{
	unsigned char words[64];
	ssize_t count = read(LIFELINE_FD, words, sizeof words);

	if (count < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (count <= 0)
		_exit(0); /* PID 1 ends, and the kernel kills the rest of the namespace */
	watch->stop_told = false;
	for (size_t i = 0; i < (size_t)count; i++) {
		int number = words[i] & ~TO_GROUP;

		if (words[i] == BEGIN) {
			begin_run(words + i + 1, (size_t)count - i - 1);
			i += sizeof(struct begin);
		} else if (number != 0) {
			kill(words[i] & TO_GROUP ? -foreground(state.command) : state.command,
			     number);
		} else if (report_usage() < 0) {
			_exit(EXIT_SETUP);
		}
	}
}

/*
 * Signals that came from outside the namespace, where the sender has no pid, are for the command.
 */
static void hear_signals(struct watch *watch)
{
	struct signalfd_siginfo info;

	watch->behind = false;
	for (int i = 0; i < AT_ONCE && read(state.signals, &info, sizeof info) > 0; i++)
		if (info.ssi_signo != SIGCHLD && info.ssi_pid == 0)
			kill(state.command, (int)info.ssi_signo);
	reap(watch, false);
}

/* Milliseconds to the deadline for poll(2), rounded up so that it never wakes before it. */
static int time_left(void)
{
	int64_t left;

	if (state.deadline_ms == 0)
		return -1;
	left = (int64_t)state.deadline_ms - (now_ns() - state.started) / 1000000;
	return left <= 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/*
 * A short turn, which the scheduler (EEVDF, sched_setattr(2), Linux 6.12) gives sooner: among
 * thousands of processes that all want to run, the deadline would come seconds late. Other kernels
 * favour whoever wakes up anyway, and take no notice of this.
 */
static void take_short_turns(void)
{
	struct {
		uint32_t size, policy;
		uint64_t flags;
		int32_t nice;
		uint32_t priority;
		uint64_t runtime, deadline, period;
	} attributes = {
		.size = sizeof attributes,
		.policy = SCHED_NORMAL,
		.nice = 20 - (int32_t)syscall(__NR_getpriority, PRIO_PROCESS, 0),
		.runtime = 100000, /* ns */
	};

	syscall(__NR_sched_setattr, 0, &attributes, 0);
}

static _Noreturn void watch_over(struct watch *watch)
{
	struct pollfd wait[] = {
		{.fd = state.signals, .events = POLLIN},
		{.fd = LIFELINE_FD, .events = POLLIN},
		{.fd = SUPERVISOR_FD, .events = POLLIN},
		{.fd = -1, .events = POLLIN},
		{.fd = -1, .events = POLLIN},
	};

	take_short_turns();
	for (;;) {
		int left = time_left(), look;
		enum end_reason met;

		if (left == 0)
			end(watch, END_DEADLINE);
		if (account_met(&met))
			end(watch, met);
		look = account_wait();
		/* As unsigned numbers, -1 is the latest of all. */
		left = (unsigned)look < (unsigned)left ? look : left;
		wait[3].fd = filter_descriptor();
		wait[3].revents = 0;
		wait[4].fd = socket_requests();
		wait[4].revents = 0;
		if (poll(wait, 5, watch->behind ? 0 : left) < 0 && errno != EINTR)
			_exit(EXIT_SETUP);
		if (wait[2].revents != 0)
			_exit(0);
		if (wait[1].revents != 0)
			hear_supervisor(watch);
		if (wait[0].revents != 0 || watch->behind)
			hear_signals(watch);
		if (wait[3].revents != 0)
			hear_filter(wait[3].revents);
		if (wait[4].revents != 0)
			hear_request();
		if (watch->ended)
			end(watch, has_met_full_memory(watch->status) ? END_SHARED : END_COMMAND);
	}
}

/* Keep what init itself uses: a descriptor of the command's would never close while it is here. */
static void close_unused(void)
{
	const int keep[] = {STATUS_FD,	   LIFELINE_FD,	   SUPERVISOR_FD,	state.slave,
			    state.signals, state.cpu_stat, filter_descriptor(), socket_requests()};
	int highest = 0;

	for (size_t i = 0; i < sizeof keep / sizeof keep[0]; i++)
		if (keep[i] > highest)
			highest = keep[i];
	for (int fd = 0; fd < highest; fd++) {
		bool kept = false;

		for (size_t i = 0; i < sizeof keep / sizeof keep[0]; i++)
			kept = kept || keep[i] == fd;
		if (!kept)
			close(fd);
	}
	close_range((unsigned)highest + 1, ~0u);
}

/* The maps are complete when the byte is there. No byte: the launcher failed, and has said so. */
static void wait_for_maps(void)
{
	char byte;
	ssize_t got;

	do {
		got = read(state.go, &byte, 1);
	} while (got < 0 && errno == EINTR);
	if (got != 1)
		_exit(EXIT_SETUP);
	close(state.go);
}

/* Hand a base's two namespaces to the supervisor, by the proc file system at PATH. They live as long as
 * somebody holds them, and init ends. */
int step_hold(const struct step *step)
{
	static const char *const names[] = {"/self/ns/user", "/self/ns/mnt"};

	for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
		char path[4096];
		cleanup_fd int fd = -1;

		if (join(path, sizeof path, step->arg[0].text, names[i], NULL) == 0)
			fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || send_gift(fd) < 0)
			return -1;
	}
	return 0;
}

/* Init's last step. */
int step_fork(const struct step *step)
{
	size_t next = (size_t)(step - state.plan->step) + 1;
	const uint64_t all = ~0ull;

	/* All are blocked since the launcher's first lines; the descriptor takes them in turn. */
	state.signals =
		(int)syscall(__NR_signalfd4, -1, &all, sizeof all, SFD_CLOEXEC | SFD_NONBLOCK);
	if (state.signals < 0)
		return -1;
	/* The limits of time begin here: without a clock there are none. */
	state.started = now_ns();
	if (state.started == 0)
		return -1;
	state.command = fork_with(0);
	if (state.command == 0)
		command_main(next);
	return state.command < 0 ? -1 : 0;
}

_Noreturn void init_main(size_t first_step)
{
	size_t first_of_command = plan_phase_end(state.plan, first_step, INIT);
	const struct record ready = {.kind = RECORD_READY, .value = {1}};
	struct watch watch = {0};

	close_fd(&state.proc); /* the host's, where we come from a base */
	wait_for_maps();
	run_steps(first_step, first_of_command);
	/* Of one that was made ahead, who hands the command over knows when it began: time is counted
	 * from 0 here, and so it is in the last record. */
	if (state.plan->step[state.plan->count - 1].kind->run == step_rest)
		state.started = 0;
	if (send_record(&ready) < 0)
		_exit(EXIT_SETUP);
	close_unused();
	watch_over(&watch);
}
