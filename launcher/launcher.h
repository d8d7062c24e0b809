/*
 * The parts of the launcher, and what each offers to the others.
 */
#ifndef CAPSULE_LAUNCHER_H
#define CAPSULE_LAUNCHER_H

#include "plan.h"
#include "util.h"

/* State that steps hand to later steps. The launcher is single-threaded and runs one plan. */
struct state {
	const struct plan *plan;
	size_t before;	      /* command: how many steps there were before the rest of the plan */
	int proc;	      /* launcher: the host's /proc, once it is out of sight */
	int go;		      /* init: end of file or a byte when the id maps are written */
	pid_t init;	      /* launcher: init's pid */
	int cgroup;	      /* launcher: the capsule's own cgroup, or -1 */
	int cpu_stat;	      /* init: that cgroup's account of CPU time, or -1 */
	uint64_t deadline_ms; /* init: 0 is none */
	pid_t command;	      /* init: the command, once it is forked */
	int64_t started;      /* init: when it was; 0 of one that was made ahead */
	int signals;	      /* init: a descriptor of all signals */
	int slave;	      /* init: the terminal for the command, or -1 */
	unsigned slave_at;    /* bits 0-2: which of descriptors 0-2 are the terminal */
	mode_t umask;	      /* the caller's, for the command */
	int ruleset;	      /* init, command: of Landlock, or -1 */
	int error_fd;	 /* ERROR_FD, until a named descriptor of the command takes its place */
	int listener_fd; /* command: where init waits for the filter's listener, or -1 */
};

extern struct state state;

/* main.c: the one way in which anything before exec fails: say which step, and die. */
_Noreturn void fail(int step, int error);

/* main.c: perform steps FROM..TO; does not return if one fails. */
void run_steps(size_t from, size_t to);

/*
 * main.c: a plan of SIZE bytes, in memory of our own: in a file, or where FIRST is COMMAND the rest of one
 * as it comes over a socket.
 */
int load_plan(struct plan *plan, int fd, uint64_t size, enum phase first);

/*
 * account.c: nanoseconds of a clock, 0 if it is gone; of CLOCK_MONOTONIC; microseconds of a timeval.
 */
int64_t clock_ns(int clock);
int64_t now_ns(void);
int64_t microseconds(struct __kernel_old_timeval time);

/* terminal.c: send a descriptor over a socket; receive one, as recvmsg(2); send to the supervisor. */
int send_descriptor(int socket, int fd);
ssize_t receive_descriptor(int socket, int *fd);
int send_gift(int fd);

/* terminal.c: the command takes the terminal, if there is one; the process group in its foreground,
 * else the command's own. */
int take_terminal(void);
pid_t foreground(pid_t command);

/* seccomp.c, in the launcher: whether a filter with a listener can be installed. */
bool can_listen(void);

/* seccomp.c, in init: what to wait for, or -1; what to do then; at the end, one record for each
 * kind of refusal, and how many belong to none of these. */
int filter_descriptor(void);
void hear_filter(short events);
uint64_t report_refusals(void);

/* What the supervisor says of the limits of time of a run whose capsule was made ahead; 0 is none. */
struct begin {
	uint64_t deadline_ms, cpu_us, cpus, idle_ms;
};

/* account.c, in init: take these limits; milliseconds until it has to look, -1 for never; whether a
 * limit is seen to be met, and which, once it is time to look; a record of what was used so far. */
void limit_run(const struct begin *begin);
int account_wait(void);
bool account_met(enum end_reason *reason);
int report_usage(void);

/* network.c, in init: where the supervisor asks for sockets, or -1; what to do when it does. */
int socket_requests(void);
void hear_request(void);

/* namespaces.c: a new user namespace with these maps. For root. */
int make_user_namespace(const char *uid_map, const char *gid_map);

/* init.c: PID 1 from its first to its last instruction. */
_Noreturn void init_main(size_t first_step);

/* command.c: the command from fork to execve. */
_Noreturn void command_main(size_t first_step);

/* main.c: send one record to the supervisor. */
int send_record(const struct record *record);

#define STEP(function, word, phases, signature) int step_##function(const struct step *step);
#include "steps.def"
#undef STEP

#endif
