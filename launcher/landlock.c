/*
 * The second wall: a ruleset of Landlock. Init makes it where the last mount is in place, for a rule
 * is about the inode that lies at a path; the command restricts itself by it. landlock(7)
 */
#include "launcher.h"
#include "mount.h"

/* linux/landlock.h, which older headers lack, or have without later fields. */
enum { PATH_BENEATH = 1, NET_PORT = 2 };

struct ruleset {
	uint64_t handled_fs, handled_net, scoped;
};

struct path_beneath {
	uint64_t allowed;
	int32_t parent;
} __attribute__((packed));

struct net_port {
	uint64_t allowed, port;
};

/* A kernel that knows no later fields takes them as long as they are zero. */
int step_landlock_ruleset(const struct step *step)
{
	const struct ruleset want = {step->arg[0].number, step->arg[1].number, step->arg[2].number};

	state.ruleset = (int)syscall(__NR_landlock_create_ruleset, &want, sizeof want, 0);
	return state.ruleset < 0 ? -1 : 0;
}

static int allow_beneath(int parent, uint64_t rights)
{
	const struct path_beneath rule = {rights, parent};

	return (int)syscall(__NR_landlock_add_rule, state.ruleset, PATH_BENEATH, &rule, 0);
}

int step_landlock_beneath(const struct step *step)
{
	cleanup_fd int place = open_in_root(step->arg[0].text, 0);

	return place < 0 ? -1 : allow_beneath(place, step->arg[1].number);
}

int step_landlock_port(const struct step *step)
{
	const struct net_port rule = {step->arg[1].number, step->arg[0].number};

	return (int)syscall(__NR_landlock_add_rule, state.ruleset, NET_PORT, &rule, 0);
}

/* What FD is open for. EBADFD: a pipe, a socket, a memfd, which Landlock leaves alone. */
static int allow_descriptor(int fd, const struct step *step)
{
	uint64_t rights = 0;
	struct stat file;
	int flags = fcntl(fd, F_GETFL, 0);

	if (flags < 0 || fstat(fd, &file) < 0)
		return -1;
	if (is_directory(&file))
		rights = step->arg[2].number;
	else if (flags & O_PATH || (flags & O_ACCMODE) == O_RDWR)
		rights = step->arg[0].number | step->arg[1].number;
	else
		rights = step->arg[(flags & O_ACCMODE) == O_RDONLY ? 0 : 1].number;
	return allow_beneath(fd, rights) < 0 && errno != EBADFD ? -1 : 0;
}

/* inherited READING WRITING DIRECTORY: the rights to what the command is handed. */
int step_landlock_inherited(const struct step *step)
{
	for (int fd = 0; fd <= 2; fd++)
		if (allow_descriptor(fd, step) < 0)
			return -1;
	for (size_t i = 0; i < state.plan->count; i++) {
		const struct step *other = &state.plan->step[i];

		if (other->kind->run == step_descriptor &&
		    allow_descriptor((int)other->arg[0].number, step) < 0)
			return -1;
	}
	return 0;
}

int step_landlock_restrict(const struct step *step)
{
	(void)step;
	return (int)syscall(__NR_landlock_restrict_self, state.ruleset, 0);
}
