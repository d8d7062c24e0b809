/*
 * The steps that build the view inside the new root.
 *
 * Places are made and mounts attached by descriptor and by openat2(2) in the new root. A symbolic
 * link planted in a shared directory leads into the capsule itself: there is nothing else.
 */
#include "mount.h"

#include <linux/openat2.h>

#define OPEN_TRIES 10000

/* The directory in which the last thing was made: most of what follows lies beside it. */
static struct {
	char path[4096];
	int fd;
	bool is_ours; /* it was looked at, and is */
} last_parent = {.fd = -1};

int open_in_root(const char *path, uint64_t flags)
{
	struct open_how how = {
		.flags = O_PATH | O_CLOEXEC | flags,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
	};

	int fd = -1;

	/*
	 * The working directory is the root from pivot_root on. EAGAIN: somewhere on the host
	 * something was renamed or mounted while a ".." was followed, and the kernel is not sure.
	 */
	for (int tries = 0; tries < OPEN_TRIES && fd < 0; tries++) {
		fd = (int)syscall(__NR_openat2, AT_FDCWD, path, &how, sizeof how);
		if (fd < 0 && errno != EAGAIN)
			break;
	}
	return fd;
}

static int parent_of_new(const char *path, const char **name);

/* The directory at PATH, made with MODE if it is missing. PATH is written to and restored. */
static int open_directory(char *path, mode_t mode)
{
	const char *name;
	int fd = open_in_root(path, O_DIRECTORY);
	int parent;

	if (fd >= 0 || errno != ENOENT)
		return fd;
	parent = parent_of_new(path, &name);
	if (parent < 0 || mkdirat(parent, name, mode) < 0)
		return -1;
	return openat(parent, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* Forget the last parent if PATH, where something was mounted, is it or lies above it. */
static void forget_parent(const char *path)
{
	if (last_parent.fd < 0 || strncmp(last_parent.path, path, strlen(path)) != 0)
		return;
	close(last_parent.fd);
	last_parent.fd = -1;
}

/*
 * The directory that holds PATH's last component, and that component. It stays open, for the next.
 */
static int parent_of(char *path, const char **name)
{
	char *slash = strrchr(path, '/');
	int fd;

	*name = slash + 1;
	if ((size_t)(slash - path) >= sizeof last_parent.path) {
		errno = ENAMETOOLONG;
		return -1;
	}
	*slash = '\0';
	if (last_parent.fd < 0 || strcmp(last_parent.path, path) != 0) {
		fd = slash == path ? open_in_root("/", O_DIRECTORY) : open_directory(path, 0755);
		if (fd >= 0) {
			forget_parent("");
			join(last_parent.path, sizeof last_parent.path, path, NULL);
			last_parent.fd = fd;
			last_parent.is_ours = false;
		}
	} else {
		fd = last_parent.fd;
	}
	*slash = '/';
	return fd;
}

/* Whether things can be made in the last parent: 1, 0, or -1 with errno set. */
static int parent_is_ours(void)
{
	int ours = last_parent.is_ours ? 1 : is_ours(last_parent.fd);

	last_parent.is_ours = ours > 0;
	return ours;
}

/* As parent_of, for a thing that is about to be made there. */
static int parent_of_new(const char *path, const char **name)
{
	int parent = parent_of((char *)path, name);
	int ours = parent < 0 ? -1 : parent_is_ours();

	errno = ours == 0 ? ENOENT : errno;
	return ours > 0 ? parent : -1;
}

/* A new file at PATH, open for writing. */
static int create_file(const char *path, mode_t mode)
{
	const char *name;
	int parent = parent_of_new(path, &name);

	if (parent < 0)
		return -1;
	return create(parent, name, O_WRONLY | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
}

static int move_to(int mounted, int place)
{
	return (int)syscall(__NR_move_mount, mounted, "", place, "",
			    MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH);
}

static int attach_to(int mounted, const char *path, bool directory)
{
	cleanup_fd int place = open_in_root(path, directory ? O_DIRECTORY : 0);

	return place < 0 ? -1 : move_to(mounted, place);
}

/* To make the place is quicker than to look for it first. Its name is ours then: no link, which would not
 * be followed either. */
static int attach_anew(int mounted, int parent, const char *name, bool directory)
{
	long made = directory ? mkdirat(parent, name, 0755)
			      : syscall(__NR_mknodat, parent, name, 0100644, 0);

	if (made < 0)
		return -1;
	return (int)syscall(__NR_move_mount, mounted, "", parent, name, MOVE_MOUNT_F_EMPTY_PATH);
}

int attach(int mounted, const char *path)
{
	const char *name;
	struct stat file;
	int parent, ours, done = -1;

	if (mounted < 0 || fstat(mounted, &file) < 0)
		return -1;
	parent = parent_of((char *)path, &name);
	ours = parent < 0 ? -1 : parent_is_ours();
	if (ours < 0)
		return -1;
	if (ours)
		done = attach_anew(mounted, parent, name, is_directory(&file));
	if (!ours || (done < 0 && errno == EEXIST))
		done = attach_to(mounted, path, is_directory(&file));
	if (done == 0)
		forget_parent(path);
	return done;
}

int step_attach(const struct step *step)
{
	cleanup_fd int fd = take_tree(step->arg[0].number);

	return attach(fd, step->arg[1].text);
}

int step_directory(const struct step *step)
{
	cleanup_fd int fd = open_directory((char *)step->arg[0].text, (mode_t)step->arg[1].number);

	return fd < 0 ? -1 : 0;
}

int step_symlink(const struct step *step)
{
	const char *name;
	int parent = parent_of_new(step->arg[1].text, &name);

	return parent < 0 ? -1 : (int)syscall(__NR_symlinkat, step->arg[0].text, parent, name);
}

int step_file(const struct step *step)
{
	cleanup_fd int fd = create_file(step->arg[0].text, (mode_t)step->arg[1].number);

	return fd < 0 ? -1 : write_all(fd, step->arg[2].text, strlen(step->arg[2].text));
}

int step_content(const struct step *step)
{
	char *data = (char *)step->arg[2].text;
	ssize_t size = decode_hex(data);
	cleanup_fd int fd = -1;

	errno = EPROTO;
	if (size < 0)
		return -1;
	fd = create_file(step->arg[0].text, (mode_t)step->arg[1].number);
	return fd < 0 ? -1 : write_all(fd, data, (size_t)size);
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

/*
 * What covers a path: an empty file or directory in the root, where a file system that comes
 * later will hide their names. They stay, for a mount whose file has no name any more cannot be
 * copied before 6.15, and a directory without one cannot be read.
 */
static int empty_file = -1, empty_directory = -1;

static int open_covers(const char *folder, bool make)
{
	char file[256], directory[256];

	if (join(file, sizeof file, folder, "/.empty-file", NULL) < 0 ||
	    join(directory, sizeof directory, folder, "/.empty-directory", NULL) < 0)
		return -1;
	if (make) {
		cleanup_fd int made = create_file(file, 0444);

		if (made < 0 || mkdir(directory, 0555) < 0)
			return -1;
	}
	empty_file = open_in_root(file, O_NOFOLLOW);
	empty_directory = open_in_root(directory, O_DIRECTORY | O_NOFOLLOW);
	return empty_file < 0 || empty_directory < 0 ? -1 : 0;
}

int step_covers(const struct step *step)
{
	return open_covers(step->arg[0].text, true);
}

/* They lie in the base: its root is read-only, and nobody has been in it. */
int step_find_covers(const struct step *step)
{
	return open_covers(step->arg[0].text, false);
}

/* Put COVER over PLACE, which is at PATH: what is made below from here on is made in the cover. */
static int lay_over(int cover, int place, const char *path)
{
	if (cover < 0 || move_to(cover, place) < 0)
		return -1;
	forget_parent(path);
	return 0;
}

/* Nothing at PATH is no error where it MAY_MISS; that it cannot be covered always is. */
static int hide(const char *path, uint64_t attributes, bool may_miss)
{
	cleanup_fd int place = open_in_root(path, 0);
	cleanup_fd int cover = -1;
	struct stat file;

	if (place < 0)
		return may_miss && errno == ENOENT ? 0 : -1;
	if (fstat(place, &file) < 0)
		return -1;
	cover = copy_tree(is_directory(&file) ? empty_directory : empty_file, "", attributes);
	return lay_over(cover, place, path);
}

/* hide PATH ATTRIBUTES MISSING */
int step_hide(const struct step *step)
{
	return hide(step->arg[0].text, step->arg[1].number, step->arg[2].number != 0);
}

/* mask ATTRIBUTES PATH...: paths that this kernel does not have, the supervisor left out. */
int step_mask(const struct step *step)
{
	uint64_t attributes = to_number(step->count > 0 ? step->arg[0].text : "");

	for (size_t i = 1; i < step->count; i++)
		if (hide(step->arg[i].text, attributes, false) < 0)
			return -1;
	return 0;
}

/* Bind PATH over itself with ATTRIBUTES. */
int step_protect(const struct step *step)
{
	const char *path = step->arg[0].text;
	cleanup_fd int place = open_in_root(path, 0);
	cleanup_fd int copy = place < 0 ? -1 : copy_tree(place, "", step->arg[1].number);

	return lay_over(copy, place, path);
}
