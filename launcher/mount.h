/*
 * Detached mounts: what mount.c makes and root.c attaches.
 */
#ifndef CAPSULE_MOUNT_H
#define CAPSULE_MOUNT_H

#include "launcher.h"

#include <linux/mount.h>

struct option {
	const char *key;
	char value[32]; /* empty: the key is a flag */
};

struct tmpfs {
	uint64_t size, inodes, mode, attributes, uid, gid;
};

/* A detached copy of the tree at PATH, or at AT itself if PATH is empty, with ATTRIBUTES. */
int copy_tree(int at, const char *path, uint64_t attributes);

/* A new file system, mounted nowhere yet. */
int new_file_system(const char *type, const struct option *option, size_t count,
		    uint64_t attributes);
int new_tmpfs(const struct tmpfs *want);

/* root.c: PATH in the new root. Links are followed within it, those of /proc not at all. */
int open_in_root(const char *path, uint64_t flags);

/* root.c: attach MOUNTED at PATH in the new root, making the place if that is in a file system of
 * our own. */
int attach(int mounted, const char *path);

/*
 * Whether DIRECTORY is in a file system of our own: 1, 0, or -1 with errno set. Mount points are made there
 * only, never in a directory of the host's.
 */
int is_ours(int directory);

/* The mount that a step made, by the number of that step among those that make some. Once only. */
int take_tree(uint64_t number);

#endif
