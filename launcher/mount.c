/*
 * What the capsule's files come from: copies of trees of the host, and file systems of its own.
 *
 * All that comes from the host is taken first, as detached mounts. Then pivot_root makes an empty
 * tmpfs the root and lets the host's tree go; root.c builds in it.
 */
#include "mount.h"

#include <linux/openat2.h>

#define TREES_MAX 1024
#define OURS_MAX 1024

/* How a source is resolved; src/capsule/launcher/steps.py says the same. */
enum { NO_LINKS = 1, DIRECTORY = 2 };

static int tree[TREES_MAX]; /* detached mounts, in the order of the steps that made them */
static size_t tree_count;
static dev_t ours[OURS_MAX]; /* file systems made here, where creating a mount point harms nobody */
static size_t ours_count;

static int keep_tree(int fd)
{
	if (fd < 0)
		return -1;
	if (tree_count == TREES_MAX) {
		errno = ENOSPC;
		return fail_closing(fd);
	}
	tree[tree_count++] = fd;
	return 0;
}

static int change_tree(int fd, unsigned flags, struct mount_attr change)
{
	return (int)syscall(__NR_mount_setattr, fd, "", AT_EMPTY_PATH | flags, &change,
			    sizeof change);
}

/* A detached copy of the tree at FD. It gets its attributes before it can be seen anywhere. */
int copy_tree(int at, const char *path, uint64_t attributes)
{
	unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
	int fd = (int)syscall(__NR_open_tree, at, path,
			      path[0] == '\0' ? flags | AT_EMPTY_PATH : flags);

	if (fd < 0 || attributes == 0)
		return fd;
	if (change_tree(fd, AT_RECURSIVE, (struct mount_attr){.attr_set = attributes}) < 0)
		return fail_closing(fd);
	return fd;
}

/* Nothing that we mount may travel to the host, nor what the host mounts come in. */
int step_private(const struct step *step)
{
	(void)step;
	return mount("/", MS_REC | MS_PRIVATE);
}

/* tree PATH ATTRIBUTES HOW: a path that had no link in it must not have got one since. */
static int take_source(const struct step *step)
{
	const char *path = step->arg[0].text;
	uint64_t how = step->arg[2].number;
	struct open_how want = {
		.flags = O_PATH | O_CLOEXEC | (how & DIRECTORY ? O_DIRECTORY : 0),
		.resolve = how & NO_LINKS ? RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS : 0,
	};
	cleanup_fd int fd = -1;

	if (how == 0)
		return copy_tree(AT_FDCWD, path, step->arg[1].number);
	fd = (int)syscall(__NR_openat2, AT_FDCWD, path, &want, sizeof want);
	return fd < 0 ? -1 : copy_tree(fd, "", step->arg[1].number);
}

int step_tree(const struct step *step)
{
	return keep_tree(take_source(step));
}

/*
 * Where a file system below cannot be mapped, or is already, or belongs to another user namespace,
 * at least the topmost one; or none. Then the command acts there as the id that it has on the host.
 */
static int map_tree(int fd, int owner)
{
	const struct mount_attr change = {
		.attr_set = MOUNT_ATTR_IDMAP,
		.userns_fd = (unsigned)owner,
	};

	for (int below = 1; below >= 0; below--) {
		if (change_tree(fd, below ? AT_RECURSIVE : 0, change) == 0)
			return 0;
		if (errno != EINVAL && errno != EOPNOTSUPP && errno != EPERM)
			return -1;
	}
	return 0;
}

/* By root on the host, who alone may map. The copy is a peer of the host's mount until it is made
 * private: what is mounted on it would appear there. */
int step_mapped_tree(const struct step *step)
{
	const struct mount_attr alone = {.propagation = MS_PRIVATE};
	cleanup_fd int owner = make_user_namespace(step->arg[3].text, step->arg[4].text);
	int fd = owner < 0 ? -1 : take_source(step);

	if (fd < 0)
		return -1;
	if (change_tree(fd, AT_RECURSIVE, alone) < 0 || map_tree(fd, owner) < 0)
		return fail_closing(fd);
	return keep_tree(fd);
}

/* A device node of the host, if it is the one it is called: a link or another node is refused. */
int step_device(const struct step *step)
{
	cleanup_fd int fd = open(step->arg[0].text, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	uint64_t major = step->arg[1].number, minor = step->arg[2].number;
	struct stat file;

	if (fd < 0 || fstat(fd, &file) < 0)
		return -1;
	if (!is_device(&file) ||
	    file.st_rdev != ((minor & 0xff) | major << 8 | (minor & ~0xffull) << 12)) {
		errno = ENODEV;
		return -1;
	}
	return keep_tree(copy_tree(fd, "", step->arg[3].number));
}

/* A new file system, mounted nowhere yet. */
int new_file_system(const char *type, const struct option *option, size_t count,
		    uint64_t attributes)
{
	cleanup_fd int fs = (int)syscall(__NR_fsopen, type, FSOPEN_CLOEXEC);

	if (fs < 0)
		return -1;
	for (size_t i = 0; i < count; i++) {
		bool flag = option[i].value[0] == '\0';

		if (syscall(__NR_fsconfig, fs, flag ? FSCONFIG_SET_FLAG : FSCONFIG_SET_STRING,
			    option[i].key, flag ? NULL : option[i].value, 0) < 0)
			return -1;
	}
	if (syscall(__NR_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -1;
	return (int)syscall(__NR_fsmount, fs, FSMOUNT_CLOEXEC, attributes);
}

static void set_number(struct option *option, uint64_t number, unsigned base)
{
	struct digits room;

	join(option->value, sizeof option->value, digits(&room, number, base), NULL);
}

int new_tmpfs(const struct tmpfs *want)
{
	struct option option[] = {{.key = "size"},
				  {.key = "nr_inodes"},
				  {.key = "mode"},
				  {.key = "uid"},
				  {.key = "gid"}};
	struct stat file;
	bool own;
	int fd;

	set_number(&option[0], want->size, 10);
	set_number(&option[1], want->inodes, 10);
	set_number(&option[2], want->mode, 8);
	set_number(&option[3], want->uid, 10);
	set_number(&option[4], want->gid, 10);
	/* Unasked, the root of a tmpfs belongs to who makes it. */
	own = want->uid == getuid() && want->gid == getgid();
	fd = new_file_system("tmpfs", option, own ? 3 : 5, want->attributes);
	if (fd < 0)
		return -1;
	errno = ENOSPC;
	if (ours_count == OURS_MAX || fstat(fd, &file) < 0)
		return fail_closing(fd);
	ours[ours_count++] = file.st_dev;
	return fd;
}

/* /proc/sys as the new procfs has it, before a read-only mount lies over it. */
static int proc_sys = -1;

/*
 * Before the old root goes: the kernel gives a new procfs only to who can see a whole one already.
 */
int step_proc(const struct step *step)
{
	int proc = new_file_system("proc", NULL, 0,
				   MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);

	(void)step;
	if (proc < 0)
		return -1;
	proc_sys = openat(proc, "sys", O_PATH | O_DIRECTORY | O_CLOEXEC);
	return proc_sys < 0 ? fail_closing(proc) : keep_tree(proc);
}

/*
 * A setting of a namespace of the capsule's own. Whose setting it is, the kernel tells by who opens the
 * file. After the last mount: each copy of a tree counts as a mount namespace.
 */
int step_sysctl(const struct step *step)
{
	const char *value = step->arg[1].text;
	cleanup_fd int fd = openat(proc_sys, step->arg[0].text, O_WRONLY | O_CLOEXEC);

	return fd < 0 ? -1 : write_all(fd, value, strlen(value));
}

/* An empty tmpfs becomes the root, and the host's tree is let go. */
int step_pivot_root(const struct step *step)
{
	const struct tmpfs want = {
		.size = step->arg[0].number,
		.inodes = step->arg[1].number,
		.mode = 0755,
		.attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV,
		.uid = getuid(),
		.gid = getgid(),
	};
	cleanup_fd int root = new_tmpfs(&want);
	cleanup_fd int top = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (root < 0 || top < 0)
		return -1;
	if (syscall(__NR_move_mount, root, "", top, "",
		    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return -1;
	/* With the same for both, the old root lies over the new one, and one umount2 takes it. */
	if (syscall(__NR_fchdir, root) < 0 || syscall(__NR_pivot_root, ".", ".") < 0 ||
	    umount2(".", MNT_DETACH) < 0)
		return -1;
	return chdir("/");
}

int is_ours(int directory)
{
	struct stat file;

	if (fstat(directory, &file) < 0)
		return -1;
	for (size_t i = 0; i < ours_count; i++)
		if (ours[i] == file.st_dev)
			return 1;
	return 0;
}

int take_tree(uint64_t number)
{
	int fd;

	if (number >= tree_count || tree[number] < 0) {
		errno = EPROTO;
		return -1;
	}
	fd = tree[number];
	tree[number] = -1;
	return fd;
}
