/*
 * Mounts that are attached already get further attributes: the root at the end, and all of them on
 * kernels that cannot give a copy its attributes before it is attached.
 */
#include "mount.h"

/*
 * A word that mount.h's flags and mount_setattr(2)'s attributes share a meaning, not a value, for.
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

/* statfs(2); what it says of writing, set-user-ID bits, devices and programs is as in mount(2). */
enum { ST_NOATIME = 0x400, ST_NODIRATIME = 0x800, ST_RELATIME = 0x1000 };

/* Add ATTRIBUTES to the one mount at PATH, keeping those it has: the kernel locks some of them. */
static int remount_one(const char *path, uint64_t attributes)
{
	struct statfs now;
	unsigned long flags = MS_REMOUNT | MS_BIND | remount_flags(attributes);

	if (statfs(path, &now) < 0)
		return -1;
	flags |= (unsigned long)now.f_flags & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC);
	flags |= (unsigned long)now.f_flags & ST_NOATIME ? MS_NOATIME : 0;
	flags |= (unsigned long)now.f_flags & ST_NODIRATIME ? MS_NODIRATIME : 0;
	flags |= (unsigned long)now.f_flags & ST_RELATIME ? MS_RELATIME : 0;
	return mount(path, flags);
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

/* The text of a file of /proc; NULL if it cannot be read to its end. It is never given back. */
static char *read_whole(const char *path)
{
	for (size_t room = 1 << 16; room <= PLAN_MAX; room *= 2) {
		cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC);
		char *text = fd < 0 ? NULL : allocate(room);
		size_t size = 0;
		ssize_t got = 1;

		if (text == NULL)
			return NULL;
		while (got > 0 && size < room - 1) {
			got = read(fd, text + size, room - 1 - size);
			size += got > 0 ? (size_t)got : 0;
		}
		if (got < 0)
			return NULL;
		if (got == 0)
			return text;
		release(text, room);
	}
	errno = E2BIG;
	return NULL;
}

/* Cut off what *TEXT begins with up to END, which is not a part of it; NULL if there is no more. */
static char *cut(char **text, char end)
{
	char *word = *text;
	char *at = word == NULL ? NULL : memchr(word, end, strlen(word));

	*text = at == NULL ? NULL : at + 1;
	if (at != NULL)
		*at = '\0';
	return word;
}

/*
 * Kernels before 5.12 lack mount_setattr(2): the mounts at and below PATH, one by one. Nothing runs
 * yet that could use the time in between. A mount that lies under another one cannot be reached by
 * path, from inside as little as from here.
 */
static int remount_below(const char *top, uint64_t attributes)
{
	char *table = read_whole("/proc/self/mountinfo"), *line;
	size_t found = 0;

	if (table == NULL)
		return -1;
	while ((line = cut(&table, '\n')) != NULL) {
		char *word = NULL;

		for (int field = 0; field < 5; field++)
			word = cut(&line, ' ');
		if (word == NULL)
			continue;
		unescape(word);
		if (!is_below(word, top))
			continue;
		if (remount_one(word, attributes) < 0)
			return -1;
		found++;
	}
	/* A table that lacks the mount must not pass for done. */
	errno = ENOENT;
	return found == 0 ? -1 : 0;
}

/* Where the mount at PATH really is, links followed: mountinfo knows no other name. */
static int real_path(const char *path, char *real, size_t size)
{
	cleanup_fd int fd = open_in_root(path, 0);
	struct digits number;
	char link[64];
	ssize_t length;

	if (fd < 0)
		return -1;
	join(link, sizeof link, "/proc/self/fd/", digits(&number, (uint64_t)fd, 10), NULL);
	length = syscall(__NR_readlinkat, AT_FDCWD, link, real, size);
	if (length < 0 || (size_t)length >= size) {
		errno = length < 0 ? errno : ENAMETOOLONG;
		return -1;
	}
	real[length] = '\0';
	return 0;
}

int step_remount(const struct step *step)
{
	char path[4096];

	if (step->arg[2].number == 0)
		return remount_one(step->arg[0].text, step->arg[1].number);
	if (real_path(step->arg[0].text, path, sizeof path) < 0)
		return -1;
	return remount_below(path, step->arg[1].number);
}
