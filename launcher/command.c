/*
 * The command between fork and execve: first what can fail, then what cannot be undone.
 */
#include "launcher.h"

_Noreturn void command_main(size_t first_step)
{
	/* A part of the fork, which is the step before. */
	if (take_terminal() < 0)
		fail((int)first_step - 1, errno);
	/* Not at the end: once the filter is in force, there is nothing left to do but execve(2). */
	umask(state.umask);
	set_signal_mask(0);
	run_steps(first_step, state.plan->count);
	/* The last step got the rest, in a plan of its own. */
	run_steps(0, state.plan->count);
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

	if (move_away(&state.error_fd, from, to) < 0 ||
	    move_away(&state.listener_fd, from, to) < 0 || move_away(&state.ruleset, from, to) < 0)
		return -1;
	if (dup2(from, to) < 0)
		return -1;
	return from == to ? 0 : close(from);
}

/* Inside the new root there is no way out of it; a directory that is not under / would be one. */
int step_chdir(const struct step *step)
{
	char path[4096];

	if (chdir(step->arg[0].text) < 0 || syscall(__NR_getcwd, path, sizeof path) < 0)
		return -1;
	if (path[0] != '/') {
		errno = EXDEV;
		return -1;
	}
	return 0;
}

_Static_assert(sizeof(union arg) == sizeof(char *), "arguments are taken for a list of words");

/*
 * A list of an exec step, as execve(2) takes it: the words already lie one behind the other. *AT is
 * its length's place, which becomes the end of the list before it.
 */
static char **take_words(const struct step *step, size_t *at)
{
	union arg *words = step->arg + *at;
	size_t count = *at < step->count ? to_number(words->text) : 0;

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
