/*
 * The command between fork and execve: first what can fail, then what cannot be undone.
 */
#include "launcher.h"

#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

/*
 * A process group of its own, in the foreground of the terminal if there is one. Its parent, init,
 * is of the same session, so the group is not orphaned and the keyboard can stop it.
 */
static int take_terminal(void)
{
	if (setpgid(0, 0) < 0)
		return -1;
	if (state.slave < 0)
		return 0;
	/* SIGTTOU is blocked, as is everything. */
	if (tcsetpgrp(state.slave, getpid()) < 0)
		return -1;
	for (int fd = 0; fd <= 2; fd++)
		if ((state.slave_at & 1u << fd) != 0 && dup2(state.slave, fd) < 0)
			return -1;
	return 0;
}

_Noreturn void command_main(size_t first_step)
{
	sigset_t none;

	if (take_terminal() < 0)
		fail((int)first_step, errno);
	/* Not at the end: once the filter is in force, there is nothing left to do but execve(2).
	 */
	umask(state.umask);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	run_steps(first_step, state.plan->count);
	_exit(EXIT_SETUP); /* not reached: the last step is exec */
}

/* Out of the way of TO. The supervisor puts every FROM above every TO, so above FROM none comes. */
static int move_away(int *fd, int from, int to)
{
	int moved;

	if (to != *fd)
		return 0;
	moved = fcntl(*fd, F_DUPFD_CLOEXEC, from + 1);
	if (moved < 0)
		return -1;
	*fd = moved;
	return 0;
}

/* Descriptor FROM of ours becomes TO of the command's. */
int step_descriptor(const struct step *step)
{
	int from = (int)step->arg[0].number, to = (int)step->arg[1].number;

	if (move_away(&state.error_fd, from, to) < 0 || move_away(&state.listener_fd, from, to) < 0)
		return -1;
	if (dup2(from, to) < 0)
		return -1;
	return from == to ? 0 : close(from);
}

/* Inside the new root there is no way out of it; a directory that is not under / would be one. */
int step_chdir(const struct step *step)
{
	char path[4096];

	if (chdir(step->arg[0].text) < 0 || getcwd(path, sizeof path) == NULL)
		return -1;
	if (path[0] != '/') {
		errno = EXDEV;
		return -1;
	}
	return 0;
}

/* At most what is asked for: a caller's own hard limit that is lower cannot be raised. */
int step_rlimit(const struct step *step)
{
	rlim_t soft = step->arg[1].number, hard = step->arg[2].number;
	struct rlimit limit;

	if (getrlimit((int)step->arg[0].number, &limit) < 0)
		return -1;
	limit.rlim_max = hard < limit.rlim_max ? hard : limit.rlim_max;
	limit.rlim_cur = soft < limit.rlim_max ? soft : limit.rlim_max;
	return setrlimit((int)step->arg[0].number, &limit);
}

/* As many processors as asked for, from the one that this runs on: neighbours begin elsewhere. */
int step_affinity(const struct step *step)
{
	cpu_set_t may, use;
	int here = sched_getcpu();
	size_t first = here < 0 ? 0 : (size_t)here;
	uint64_t left = step->arg[0].number;

	if (sched_getaffinity(0, sizeof may, &may) < 0)
		return -1;
	CPU_ZERO(&use);
	for (size_t i = 0; i < CPU_SETSIZE && left > 0; i++) {
		size_t cpu = (i + first) % CPU_SETSIZE;

		if (CPU_ISSET(cpu, &may)) {
			CPU_SET(cpu, &use);
			left--;
		}
	}
	return sched_setaffinity(0, sizeof use, &use);
}

/*
 * Nothing that is executed from here on can gain a capability but those to KEEP: not by being root
 * (securebits), not from a file (bounding set), not from its parent (ambient set). Where some are
 * kept, it is by being root that they are. Before the ids change, for this needs CAP_SETPCAP.
 */
int step_bounding_set(const struct step *step)
{
	uint64_t keep = step->arg[0].number;
	unsigned long bits = SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED |
			     SECBIT_KEEP_CAPS_LOCKED | SECBIT_NO_CAP_AMBIENT_RAISE |
			     SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

	if (prctl(PR_SET_SECUREBITS, keep == 0 ? bits | SECBIT_NOROOT : bits) < 0)
		return -1;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		return -1;
	/* EINVAL: the kernel knows no more. Of the first it knows surely. */
	for (unsigned long capability = 0;; capability++) {
		if (capability < 64 && (keep >> capability & 1) != 0)
			continue;
		if (prctl(PR_CAPBSET_DROP, capability) < 0)
			return errno == EINVAL && capability > 0 ? 0 : -1;
	}
}

/* Another identity than the one that set up, where the id map holds more than one. */
int step_credentials(const struct step *step)
{
	uid_t uid = (uid_t)step->arg[0].number;
	gid_t gid = (gid_t)step->arg[1].number;

	return setgroups(0, NULL) < 0 || setresgid(gid, gid, gid) < 0 ? -1
								      : setresuid(uid, uid, uid);
}

int step_capabilities(const struct step *step)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	uint32_t low = (uint32_t)step->arg[0].number, high = (uint32_t)(step->arg[0].number >> 32);
	struct __user_cap_data_struct kept[2] = {
		{.effective = low, .permitted = low},
		{.effective = high, .permitted = high},
	};

	return (int)syscall(SYS_capset, &header, kept);
}

int step_no_new_privs(const struct step *step)
{
	(void)step;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

_Static_assert(sizeof(union arg) == sizeof(char *), "arguments are taken for a list of words");

/*
 * A list of an exec step, as execve(2) takes it: the words already lie one behind the other. *AT is
 * its length's place, which becomes the end of the list before it.
 */
static char **take_words(const struct step *step, size_t *at)
{
	union arg *words = step->arg + *at;
	size_t count = *at < step->count ? strtoul(words->text, NULL, 10) : 0;

	if (*at >= step->count || count > step->count - *at - 1) {
		errno = EPROTO;
		return NULL;
	}
	words->text = NULL;
	*at += count + 1;
	return (char **)(void *)(words + 1);
}

/*
 * exec COUNT PATH... COUNT ARGUMENT... COUNT VARIABLE...: execute the first PATH that is there, as
 * execvp(3) does. Which paths, the supervisor decided; which is there, only the new root can tell.
 * Nothing but execve(2) is called here: the filter is in force already.
 */
int step_exec(const struct step *step)
{
	size_t at = 0;
	char **paths = take_words(step, &at);
	char **arguments = paths == NULL ? NULL : take_words(step, &at);
	char **environment = arguments == NULL ? NULL : take_words(step, &at);
	int error = ENOENT;

	if (environment == NULL)
		return -1;
	if (at != step->count) {
		errno = EPROTO;
		return -1;
	}
	/* The last step: what lies behind it is empty. */
	step->arg[at].text = NULL;
	for (; *paths != NULL; paths++) {
		execve(*paths, arguments, environment);
		if (errno == EACCES)
			error = EACCES;
		else if (errno != ENOENT && errno != ENOTDIR)
			return -1;
	}
	errno = error;
	return -1;
}
