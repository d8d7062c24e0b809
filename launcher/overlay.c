/*
 * Overlays: a tree of the host that is only read, and a layer above it that takes what is written.
 */
#include "mount.h"

/* The number of an upper layer that is to be made; src/capsule/launcher/steps.py says the same. */
#define NO_TREE 4294967295u

/*
 * The kernel copies the mounts of layers, before 6.15 only such as are attached in our namespace.
 */
static char top[] = "/.layers", lower_at[] = "/.layers/lower", upper_at[] = "/.layers/upper";

static int attach_layers(int lower, int upper)
{
	if (mkdir(top, 0700) < 0 || mkdir(lower_at, 0700) < 0 || mkdir(upper_at, 0700) < 0)
		return -1;
	return attach(lower, lower_at) < 0 ? -1 : attach(upper, upper_at);
}

/* The overlay holds copies of their mounts. Nobody else has a way to them from here on. */
static int detach_layers(void)
{
	const int how = MNT_DETACH | UMOUNT_NOFOLLOW;

	if (umount2(lower_at, how) < 0 || umount2(upper_at, how) < 0)
		return -1;
	return rmdir(lower_at) < 0 || rmdir(upper_at) < 0 ? -1 : rmdir(top);
}

/*
 * The directory NAME of an upper layer; a new one is like MODEL. In a layer that was kept it is
 * there already: whatever else an earlier program may have put in its place, a link above all, is
 * refused.
 */
static int open_part(int layer, const char *name, const struct stat *model)
{
	bool made = mkdirat(layer, name, 0700) == 0;
	int fd;

	if (!made && errno != EEXIST)
		return -1;
	fd = openat(layer, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 || !made)
		return fd;
	/* An owner that the id map lacks cannot be given: then it is ours. */
	if ((syscall(__NR_fchown, fd, model->st_uid, model->st_gid) < 0 && errno != EINVAL) ||
	    syscall(__NR_fchmod, fd, model->st_mode & 07777) < 0)
		return fail_closing(fd);
	return fd;
}

/*
 * Layers are named by descriptor: there is no path that could lead elsewhere by now, none to
 * escape, and none of the host's in the table of mounts.
 */
static void name(struct option *option, int fd)
{
	struct digits number;

	join(option->value, sizeof option->value, "/proc/self/fd/",
	     digits(&number, (uint64_t)fd, 10), NULL);
}

static int new_overlay(int lower, int upper, int work, uint64_t attributes)
{
	struct option option[] = {
		{.key = "lowerdir"}, {.key = "upperdir"},  {.key = "workdir"},
		{"index", "off"},    {.key = "userxattr"},
	};
	struct statfs now;
	int fd;

	name(&option[0], lower);
	name(&option[1], upper);
	name(&option[2], work);
	fd = new_file_system("overlay", option, sizeof option / sizeof option[0], attributes);
	if (fd < 0)
		return -1;
	if (fstatfs(fd, &now) < 0)
		return fail_closing(fd);
	/* So the kernel answers if it cannot use the work directory. */
	errno = EROFS;
	return ((uint64_t)now.f_flags & ~attributes & MS_RDONLY) != 0 ? fail_closing(fd) : fd;
}

/*
 * The overlay of two layers that are attached. With GIVE, its upper layer goes to the supervisor.
 */
static int join_layers(int lower, int upper, uint64_t attributes, bool give)
{
	cleanup_fd int written = -1, work = -1;
	struct stat model;

	if (fstat(lower, &model) < 0)
		return -1;
	written = open_part(upper, "upper", &model);
	work = written < 0 ? -1 : open_part(upper, "work", &model);
	if (work < 0 || (give && send_gift(written) < 0))
		return -1;
	return new_overlay(lower, written, work, attributes);
}

/* overlay AT LOWER UPPER SIZE INODES ATTRIBUTES */
int step_overlay(const struct step *step)
{
	const struct tmpfs want = {
		.size = step->arg[3].number,
		.inodes = step->arg[4].number,
		.mode = 0700,
		.attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
		.uid = getuid(),
		.gid = getgid(),
	};
	bool is_new = step->arg[2].number == NO_TREE;
	cleanup_fd int lower = take_tree(step->arg[1].number);
	cleanup_fd int upper = lower < 0 ? -1
			       : is_new	 ? new_tmpfs(&want)
					 : take_tree(step->arg[2].number);
	cleanup_fd int overlay = -1;

	if (upper < 0 || attach_layers(lower, upper) < 0)
		return -1;
	overlay = join_layers(lower, upper, step->arg[5].number, is_new);
	if (overlay < 0 || detach_layers() < 0)
		return -1;
	return attach(overlay, step->arg[0].text);
}
