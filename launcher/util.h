/*
 * What every part of the launcher needs: descriptors, the two pipes, the raw system calls.
 */
#ifndef CAPSULE_UTIL_H
#define CAPSULE_UTIL_H

#include "sys.h"
#include "text.h"

/* Where the supervisor puts its descriptors; src/capsule/launcher/spawn.py says the same. */
enum {
	PLAN_FD = 3,	   /* the plan: a memfd, read once */
	ERROR_FD = 4,	   /* one report (step, errno), or end of file when the command runs */
	STATUS_FD = 5,	   /* records: started, stopped, refused, ended */
	LIFELINE_FD = 6,   /* end of file: the supervisor is gone; a byte: a signal to pass on */
	SUPERVISOR_FD = 7, /* pidfd of the supervisor, readable when it is gone */
	GIFT_FD = 8,   /* socket over which descriptors leave (only if a step has one to give) */
	CGROUP_FD = 9, /* directory of the capsule's own cgroup (only if a step says so) */
	BASE_USER_FD = 10, /* user and mount namespace of a base (only if steps join them) */
	BASE_MOUNTS_FD = 11,
	FIRST_USER_FD = 12,
};

/* Exit status of a launcher, init or command that failed before exec. The error pipe says why. */
#define EXIT_SETUP 125

enum record_kind {
	RECORD_STARTED = 1, /* init's pid, as the host sees it */
	RECORD_FEATURES,
	RECORD_READY, /* init has taken its last step */
	RECORD_STOPPED,
	RECORD_ENDED,
	RECORD_REFUSED, /* a kind of refusal by the filter; before the last record */
	RECORD_USAGE,	/* what was used so far, when the supervisor asks */
	RECORD_ENDING,	/* what is left is being killed; only if anything is */
	RECORD_WAITING, /* init waits for the rest of its plan */
};

/* One message on the status pipe; far below PIPE_BUF, so a write is all or nothing. */
struct record {
	int64_t kind;
	int64_t value[11];
};

enum end_reason { END_COMMAND, END_DEADLINE, END_CPU_TIME, END_IDLE, END_MEMORY, END_SHARED };

static inline void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
#define cleanup_fd __attribute__((cleanup(close_fd)))

/* Close FD and fail with the error that there was. */
static inline int fail_closing(int fd)
{
	int error = errno;

	close(fd);
	errno = error;
	return -1;
}

/* Write all of DATA, whatever a signal or a full pipe cuts off. */
static inline int write_all(int fd, const void *data, size_t size)
{
	const char *at = data;

	while (size > 0) {
		ssize_t done = write(fd, at, size);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return -1;
		at += done;
		size -= (size_t)done;
	}
	return 0;
}

#endif
