/*
 * Mounts that are attached already get further attributes: the root at the end, and all of them on
 * kernels that cannot give a copy its attributes before it is attached.
 */
#include "mount.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

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
	size_t room = 0, found = 0;
	int result = 0, error;

	if (table == NULL)
		return -1;
	errno = 0;
	while (result == 0 && getline(&line, &room, table) > 0) {
		char *rest = line, *word = NULL;

		for (int field = 0; field < 5 && (word = strsep(&rest, " ")) != NULL; field++)
			;
		if (word == NULL)
			continue;
		unescape(word);
		if (is_below(word, top)) {
			result = remount_one(word, attributes);
			found++;
		}
	}
	/* A table that could not be read to its end, or lacks the mount, must not pass for done. */
	if (result == 0 && (!feof(table) || ferror(table) || found == 0)) {
		errno = errno == 0 ? ENOENT : errno;
		result = -1;
	}
	error = errno;
	free(line);
	fclose(table);
	errno = error;
	return result;
}

/* Where the mount at PATH really is, links followed: mountinfo knows no other name. */
static int real_path(const char *path, char *real, size_t size)
{
	cleanup_fd int fd = open_in_root(path, 0);
	char link[64];
	ssize_t length;

	if (fd < 0)
		return -1;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	length = readlink(link, real, size);
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
