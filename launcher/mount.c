/*
 * The steps that build the capsule's view of files.
 *
 * What comes from the host is taken first, as detached copies of mount trees. Then pivot_root makes
 * an empty tmpfs the root and lets the host's tree go. Only after that are places made and trees
 * attached, by descriptor and by openat2(2) in the new root: a symbolic link planted in a shared
 * directory leads nowhere but into the capsule itself, because there is nothing else.
 */
#include "launcher.h"

#include <linux/mount.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>

#define TREES_MAX 1024
#define OURS_MAX 256

static int tree[TREES_MAX]; /* detached mounts, in the order of the steps that made them */
static size_t tree_count;
static dev_t ours[OURS_MAX]; /* file systems made here, where creating a mount point harms nobody */
static size_t ours_count;

static int keep_tree(int fd)
{
	if (fd < 0)
		return -1;
	if (tree_count == TREES_MAX) {
		close(fd);
		errno = ENOSPC;
		return -1;
	}
	tree[tree_count++] = fd;
	return 0;
}

/* A word that mount.h's flags and mount_setattr(2)'s attributes share a meaning, not a value, for.
 */
static unsigned long remount_flags(uint64_t attributes)
{
	unsigned long flags = 0;

	flags |= attributes & MOUNT_ATTR_RDONLY ? MS_RDONLY : 0;
	flags |= attributes & MOUNT_ATTR_NOSUID ? MS_NOSUID : 0;
	flags |= attributes & MOUNT_ATTR_NODEV ? MS_NODEV : 0;
	flags |= attributes & MOUNT_ATTR_NOEXEC ? MS_NOEXEC : 0;
	return flags;
}

/* A detached copy of the tree at FD. It gets its attributes before it can be seen anywhere. */
static int copy_tree(int at, const char *path, uint64_t attributes)
{
	unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
	struct mount_attr change = {.attr_set = attributes};
	int fd = (int)syscall(SYS_open_tree, at, path,
			      path[0] == '\0' ? flags | AT_EMPTY_PATH : flags);
	int error;

	if (fd < 0 || attributes == 0)
		return fd;
	if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH | AT_RECURSIVE, &change,
		    sizeof change) == 0)
		return fd;
	error = errno;
	close(fd);
	errno = error;
	return -1;
}

/* Nothing that we mount may travel to the host, nor what the host mounts come in. */
int step_private(const struct step *step)
{
	(void)step;
	return mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

int step_tree(const struct step *step)
{
	return keep_tree(copy_tree(AT_FDCWD, step->arg[0].text, step->arg[1].number));
}

/* A device node of the host, if it is the one it is called: a link or another node is refused. */
int step_device(const struct step *step)
{
	cleanup_fd int fd = open(step->arg[0].text, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	dev_t wanted = makedev((unsigned)step->arg[1].number, (unsigned)step->arg[2].number);
	struct stat file;

	if (fd < 0 || fstat(fd, &file) < 0)
		return -1;
	if (!S_ISCHR(file.st_mode) || file.st_rdev != wanted) {
		errno = ENODEV;
		return -1;
	}
	return keep_tree(copy_tree(fd, "", step->arg[3].number));
}

struct option {
	const char *key;
	char value[24];
};

/* A new file system, mounted nowhere yet. */
static int new_file_system(const char *type, const struct option *option, size_t count,
			   uint64_t attributes)
{
	cleanup_fd int fs = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);

	if (fs < 0)
		return -1;
	for (size_t i = 0; i < count; i++)
		if (syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, option[i].key, option[i].value,
			    0) < 0)
			return -1;
	if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -1;
	return (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes);
}

struct tmpfs {
	uint64_t size, inodes, mode, attributes, uid, gid;
};

static int new_tmpfs(const struct tmpfs *want)
{
	struct option option[] = {{.key = "size"},
				  {.key = "nr_inodes"},
				  {.key = "mode"},
				  {.key = "uid"},
				  {.key = "gid"}};
	struct stat file;
	bool own;
	int fd;

	snprintf(option[0].value, sizeof option[0].value, "%llu", (unsigned long long)want->size);
	snprintf(option[1].value, sizeof option[1].value, "%llu", (unsigned long long)want->inodes);
	snprintf(option[2].value, sizeof option[2].value, "%llo", (unsigned long long)want->mode);
	snprintf(option[3].value, sizeof option[3].value, "%llu", (unsigned long long)want->uid);
	snprintf(option[4].value, sizeof option[4].value, "%llu", (unsigned long long)want->gid);
	/* Unasked, the root of a tmpfs belongs to who makes it. */
	own = want->uid == getuid() && want->gid == getgid();
	fd = new_file_system("tmpfs", option, own ? 3 : 5, want->attributes);
	if (fd < 0)
		return -1;
	if (ours_count == OURS_MAX || fstat(fd, &file) < 0) {
		close(fd);
		errno = ENOSPC;
		return -1;
	}
	ours[ours_count++] = file.st_dev;
	return fd;
}

/* Before the old root goes: the kernel gives a new procfs only to who can see a whole one already.
 */
int step_proc(const struct step *step)
{
	(void)step;
	return keep_tree(new_file_system("proc", NULL, 0,
					 MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC));
}

/*
 * From the caller's ids to those of the capsule. Sources are opened before this, with the caller's
 * own rights; files are made after it, for a file system takes no owner that the id map lacks.
 */
int step_identity(const struct step *step)
{
	uid_t uid = (uid_t)step->arg[0].number;
	gid_t gid = (gid_t)step->arg[1].number;

	return setresgid(gid, gid, gid) < 0 ? -1 : setresuid(uid, uid, uid);
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
	if (syscall(SYS_move_mount, root, "", top, "",
		    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return -1;
	/* With both arguments the same, the old root lies over the new one, and one umount2 takes
	 * it. */
	if (fchdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 ||
	    umount2(".", MNT_DETACH) < 0)
		return -1;
	return chdir("/");
}

/* PATH in the new root: links are followed within it, those of /proc not at all. */
static int open_in_root(const char *path, uint64_t flags)
{
	struct open_how how = {
		.flags = O_PATH | O_CLOEXEC | flags,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
	};

	/* The working directory is the root from pivot_root on. */
	return (int)syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
}

/* Mount points are made in our own file systems only, never in a directory of the host's. */
static int check_ours(int directory)
{
	struct stat file;

	if (fstat(directory, &file) < 0)
		return -1;
	for (size_t i = 0; i < ours_count; i++)
		if (ours[i] == file.st_dev)
			return 0;
	errno = ENOENT;
	return -1;
}

static int open_parent(char *path, const char **name);

/* The directory at PATH, made with MODE if it is missing. PATH is written to and restored. */
static int open_directory(char *path, mode_t mode)
{
	const char *name;
	int fd = open_in_root(path, O_DIRECTORY);
	cleanup_fd int parent = -1;

	if (fd >= 0 || errno != ENOENT)
		return fd;
	parent = open_parent(path, &name);
	if (parent < 0 || check_ours(parent) < 0 || mkdirat(parent, name, mode) < 0)
		return -1;
	return openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* The directory that holds PATH's last component, and that component. */
static int open_parent(char *path, const char **name)
{
	char *slash = strrchr(path, '/');
	int fd;

	*name = slash + 1;
	if (slash == path)
		return open_in_root("/", O_DIRECTORY);
	*slash = '\0';
	fd = open_directory(path, 0755);
	*slash = '/';
	return fd;
}

/* As open_parent, for a thing that is about to be made there. */
static int open_parent_of_new(const char *path, const char **name)
{
	int parent = open_parent((char *)path, name);
	int error;

	if (parent < 0 || check_ours(parent) == 0)
		return parent;
	error = errno;
	close(parent);
	errno = error;
	return -1;
}

/* A new file at PATH, open for writing. */
static int create_file(const char *path, mode_t mode)
{
	const char *name;
	cleanup_fd int parent = open_parent_of_new(path, &name);

	if (parent < 0)
		return -1;
	return openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
}

/* The place at PATH for a mount: what is there, or else a new directory or empty file. */
static int open_place(const char *path, bool directory)
{
	int fd;

	if (directory)
		return open_directory((char *)path, 0755);
	fd = open_in_root(path, 0);
	return fd < 0 && errno == ENOENT ? create_file(path, 0644) : fd;
}

static int attach(int mounted, const char *path)
{
	cleanup_fd int place = -1;
	struct stat file;

	if (mounted < 0 || fstat(mounted, &file) < 0)
		return -1;
	place = open_place(path, S_ISDIR(file.st_mode));
	if (place < 0)
		return -1;
	return (int)syscall(SYS_move_mount, mounted, "", place, "",
			    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

int step_attach(const struct step *step)
{
	int *fd;

	if (step->arg[0].number >= tree_count || tree[step->arg[0].number] < 0) {
		errno = EPROTO;
		return -1;
	}
	fd = &tree[step->arg[0].number];
	if (attach(*fd, step->arg[1].text) < 0)
		return -1;
	close(*fd);
	*fd = -1;
	return 0;
}

int step_directory(const struct step *step)
{
	cleanup_fd int fd = open_directory((char *)step->arg[0].text, (mode_t)step->arg[1].number);

	return fd < 0 ? -1 : 0;
}

int step_symlink(const struct step *step)
{
	const char *name;
	cleanup_fd int parent = open_parent_of_new(step->arg[1].text, &name);

	return parent < 0 ? -1 : symlinkat(step->arg[0].text, parent, name);
}

int step_file(const struct step *step)
{
	cleanup_fd int fd = create_file(step->arg[0].text, (mode_t)step->arg[1].number);

	return fd < 0 ? -1 : write_all(fd, step->arg[2].text, strlen(step->arg[2].text));
}

int step_tmpfs(const struct step *step)
{
	const struct tmpfs want = {
		.size = step->arg[1].number,
		.inodes = step->arg[2].number,
		.mode = step->arg[3].number,
		.attributes = step->arg[4].number,
		.uid = step->arg[5].number,
		.gid = step->arg[6].number,
	};
	cleanup_fd int fd = new_tmpfs(&want);

	return attach(fd, step->arg[0].text);
}

int step_devpts(const struct step *step)
{
	const struct option option[] = {{"mode", "0600"}, {"ptmxmode", "0666"}};
	cleanup_fd int fd =
		new_file_system("devpts", option, 2, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);

	return attach(fd, step->arg[0].text);
}

/* Add ATTRIBUTES to the one mount at PATH, keeping those it has: the kernel locks some of them. */
static int remount_one(const char *path, uint64_t attributes)
{
	struct statvfs now;
	unsigned long flags = MS_REMOUNT | MS_BIND | remount_flags(attributes);

	if (statvfs(path, &now) < 0)
		return -1;
	flags |= now.f_flag & ST_RDONLY ? MS_RDONLY : 0;
	flags |= now.f_flag & ST_NOSUID ? MS_NOSUID : 0;
	flags |= now.f_flag & ST_NODEV ? MS_NODEV : 0;
	flags |= now.f_flag & ST_NOEXEC ? MS_NOEXEC : 0;
	flags |= now.f_flag & ST_NOATIME ? MS_NOATIME : 0;
	flags |= now.f_flag & ST_NODIRATIME ? MS_NODIRATIME : 0;
	flags |= now.f_flag & ST_RELATIME ? MS_RELATIME : 0;
	return mount(NULL, path, NULL, flags, NULL);
}

/* Undo the octal escapes of mountinfo (space, tab, newline, backslash), in place. */
static void unescape(char *word)
{
	char *to = word;

	for (char *from = word; *from != '\0'; to++) {
		if (from[0] == '\\' && from[1] != '\0' && from[2] != '\0' && from[3] != '\0') {
			*to = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
			from += 4;
		} else {
			*to = *from++;
		}
	}
	*to = '\0';
}

static bool is_below(const char *path, const char *top)
{
	size_t length = strlen(top);

	return strncmp(path, top, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/*
 * Kernels before 5.12 lack mount_setattr(2): the mounts at and below PATH, one by one. Nothing runs
 * yet that could use the time in between. A mount that lies under another one cannot be reached by
 * path, from inside as little as from here.
 */
static int remount_below(const char *top, uint64_t attributes)
{
	FILE *table = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t room = 0;
	int result = 0, error = 0;

	if (table == NULL)
		return -1;
	while (result == 0 && getline(&line, &room, table) > 0) {
		char *rest = line, *word = NULL;

		for (int field = 0; field < 5 && (word = strsep(&rest, " ")) != NULL; field++)
			;
		if (word == NULL)
			continue;
		unescape(word);
		if (is_below(word, top))
			result = remount_one(word, attributes);
	}
	error = errno;
	free(line);
	fclose(table);
	errno = error;
	return result;
}

int step_remount(const struct step *step)
{
	bool recursive = step->arg[2].number != 0;

	return recursive ? remount_below(step->arg[0].text, step->arg[1].number)
			 : remount_one(step->arg[0].text, step->arg[1].number);
}

/* What covers another file: a name in the root for as long as it takes to mount it. */
static const char empty_file[] = "/.empty";

/*
 * A mount of an empty file. It comes from the root's tmpfs: before 6.15 a mount that is attached
 * nowhere cannot be copied, nor can a file that has no name be mounted.
 */
static int new_empty_file(uint64_t attributes)
{
	cleanup_fd int file = create_file(empty_file, 0444);

	return file < 0 ? -1 : copy_tree(AT_FDCWD, empty_file, attributes);
}

/* Cover PATH with emptiness. A path that this kernel does not have, the supervisor left out. */
int step_mask(const struct step *step)
{
	uint64_t attributes = step->arg[1].number;
	const struct tmpfs empty = {
		.size = 4096,
		.inodes = 2,
		.mode = 0555,
		.attributes = attributes | MOUNT_ATTR_RDONLY,
		.uid = getuid(),
		.gid = getgid(),
	};
	cleanup_fd int place = open_in_root(step->arg[0].text, 0);
	cleanup_fd int cover = -1;
	struct stat file;

	if (place < 0 || fstat(place, &file) < 0)
		return -1;
	cover = S_ISDIR(file.st_mode) ? new_tmpfs(&empty) : new_empty_file(attributes);
	if (cover < 0)
		return -1;
	if (syscall(SYS_move_mount, cover, "", place, "",
		    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) < 0)
		return -1;
	return S_ISDIR(file.st_mode) ? 0 : unlink(empty_file);
}

/* Bind PATH over itself with ATTRIBUTES. */
int step_protect(const struct step *step)
{
	cleanup_fd int place = open_in_root(step->arg[0].text, 0);
	cleanup_fd int copy = place < 0 ? -1 : copy_tree(place, "", step->arg[1].number);

	if (copy < 0)
		return -1;
	return (int)syscall(SYS_move_mount, copy, "", place, "",
			    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}
