/*
 * The steps of the launcher on the host: namespaces and id maps.
 */
#include "launcher.h"

#include <linux/mount.h>
#include <linux/prctl.h>

#define INTO_CGROUP 0x200000000ull /* CLONE_INTO_CGROUP, Linux 5.7 */

/* Supplementary groups of the caller reach files that uid and gid alone do not. */
int step_drop_groups(const struct step *step)
{
	(void)step;
	return drop_groups();
}

/*
 * Nobody is spared for the caller's sake when the host runs out of memory. What somebody writes who has
 * CAP_SYS_RESOURCE on the host is also the least that the command can go back to; for others the kernel
 * keeps the least that the caller itself could go back to. The launcher is in no namespace yet.
 */
int step_oom_score_adj(const struct step *step)
{
	cleanup_fd int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
	uint64_t now, least = step->arg[0].number;
	char text[16] = "";
	struct digits room;
	const char *word;

	if (fd < 0 || read(fd, text, sizeof text - 1) < 0)
		return -1;
	now = text[0] == '-' ? 0 : to_number(text);
	word = digits(&room, now > least ? now : least, 10);
	return pwrite(fd, word, strlen(word), 0) < 0 ? -1 : 0;
}

/* linux/keyctl.h: the owner may view and search, and nobody else do anything. */
#define ONLY_LOOKED_AT 0x00090000
#define ONLY_LOOKED_AT_TEXT ";00090000;"

/*
 * The caller's session keyring would be inherited, for keyrings are in no namespace. In its place comes
 * one of the user's capsules, empty, to which nobody can write and whose permissions nobody can change:
 * one key for all of them, where one for each would use up the quota (200 keys). EPERM, ENOSYS: under a
 * filter that takes keyctl(2) away, or without keys in the kernel, none is within reach inside either.
 */
int step_keyring(const struct step *step)
{
	const int session = -3; /* KEY_SPEC_SESSION_KEYRING */
	char text[128] = "";

	(void)step;
	if (syscall(__NR_keyctl, 1 /* ..._JOIN_SESSION_KEYRING */, "capsule") < 0)
		return errno == EPERM || errno == ENOSYS ? 0 : -1;
	/* EACCES: whoever made it has done this. */
	if (syscall(__NR_keyctl, 5 /* ..._SETPERM */, session, ONLY_LOOKED_AT) < 0 &&
	    errno != EACCES)
		return -1;
	/* type;uid;gid;permissions;name */
	if (syscall(__NR_keyctl, 6 /* ..._DESCRIBE */, session, text, sizeof text - 1) < 0)
		return -1;
	if (strstr(text, ONLY_LOOKED_AT_TEXT) != NULL)
		return 0;
	errno = EACCES;
	return -1;
}

/* The cgroup that the supervisor made for this capsule; init keeps its account of CPU time. */
int step_cgroup(const struct step *step)
{
	(void)step;
	state.cgroup = CGROUP_FD;
	state.cpu_stat = openat(state.cgroup, "cpu.stat", O_RDONLY | O_CLOEXEC);
	return state.cpu_stat < 0 ? -1 : 0;
}

/*
 * A base is a user and a mount namespace in which what is the same for many capsules lies ready. No
 * command ever runs in it: each capsule makes namespaces of its own below. To join it one must own it,
 * as who made it does.
 */
int step_join_user(const struct step *step)
{
	(void)step;
	state.proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (state.proc < 0 || syscall(__NR_setns, BASE_USER_FD, CLONE_NEWUSER) < 0)
		return -1;
	/* With the capabilities came what a set-uid program has; init's maps are ours to write. */
	return prctl(PR_SET_DUMPABLE, 1, 0);
}

/* The host's tree once more, in a mount namespace where trees of it may be copied. */
int step_apart(const struct step *step)
{
	(void)step;
	if (syscall(__NR_unshare, CLONE_NEWNS) < 0)
		return -1;
	return mount("/", MS_REC | MS_PRIVATE);
}

/* From here on the root is the base's. */
int step_join_mounts(const struct step *step)
{
	(void)step;
	if (syscall(__NR_setns, BASE_MOUNTS_FD, CLONE_NEWNS) < 0)
		return -1;
	return close(BASE_USER_FD) < 0 ? -1 : close(BASE_MOUNTS_FD);
}

/*
 * As clone(2), into the cgroup as well: nothing of the capsule ever runs outside of it. A cgroup
 * namespace made by the same call would begin at our own cgroup, so init makes it later.
 */
static long clone_into_cgroup(uint64_t flags)
{
	/*
	 * struct clone_args, which older headers lack: flags, ..., exit_signal, ..., cgroup. With
	 * CLONE_PARENT the signal is our own, which is SIGCHLD.
	 */
	uint64_t args[11] = {
		[0] = (flags & ~(uint64_t)CLONE_NEWCGROUP) | INTO_CGROUP,
		[10] = (uint64_t)state.cgroup,
	};

	return syscall(__NR_clone3, args, sizeof args);
}

/*
 * Clone init into the namespaces. Init becomes the supervisor's child, not ours (CLONE_PARENT):
 * whoever waits for init knows that the whole PID namespace is gone, and we need not stay for it.
 */
int step_namespaces(const struct step *step)
{
	struct record started = {.kind = RECORD_STARTED};
	size_t next = (size_t)(step - state.plan->step) + 1;
	uint64_t flags = step->arg[0].number | CLONE_PARENT;
	int go[2];
	long pid;

	if (pipe2(go, O_CLOEXEC) < 0)
		return -1;
	if (state.cgroup < 0)
		pid = fork_with(flags);
	else
		pid = clone_into_cgroup(flags);
	if (pid < 0)
		return -1;
	if (pid == 0) {
		if (state.cgroup >= 0 && syscall(__NR_unshare, CLONE_NEWCGROUP) < 0)
			fail((int)next - 1, errno);
		close(go[1]);
		state.go = go[0];
		init_main(plan_phase_end(state.plan, next, LAUNCH));
	}
	close(go[0]);
	state.go = go[1];
	state.init = (pid_t)pid;
	started.value[0] = pid;
	return send_record(&started);
}

/* Open /proc/<pid>/NAME. */
static int open_of_process(pid_t pid, const char *name, int flags)
{
	struct digits number;
	char path[64];

	if (state.proc < 0)
		state.proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (state.proc < 0)
		return -1;
	if (join(path, sizeof path, digits(&number, (uint64_t)pid, 10), "/", name, NULL) < 0)
		return -1;
	return openat(state.proc, path, flags | O_CLOEXEC);
}

/* Write TEXT to /proc/<pid>/NAME, in one write as the kernel demands of maps. */
static int write_proc_file(pid_t pid, const char *name, const char *text)
{
	cleanup_fd int fd = -1;
	size_t size = strlen(text);
	ssize_t done;

	fd = open_of_process(pid, name, O_WRONLY);
	if (fd < 0)
		return -1;
	done = write(fd, text, size);
	if (done < 0)
		return -1;
	if ((size_t)done != size) {
		errno = EIO;
		return -1;
	}
	return 0;
}

/* Before gid_map: an unprivileged caller may not map groups while setgroups(2) is allowed
 * (CVE-2014-8989). */
int step_deny_setgroups(const struct step *step)
{
	(void)step;
	return write_proc_file(state.init, "setgroups", "deny");
}

int step_gid_map(const struct step *step)
{
	return write_proc_file(state.init, "gid_map", step->arg[0].text);
}

int step_uid_map(const struct step *step)
{
	return write_proc_file(state.init, "uid_map", step->arg[0].text);
}

/* A child holds the namespace until we do. It ends with the pipe, so even if we are killed. */
int make_user_namespace(const char *uid_map, const char *gid_map)
{
	int hold[2], fd = -1, error;
	pid_t child;
	char byte;

	if (pipe2(hold, O_CLOEXEC) < 0)
		return -1;
	child = fork_with(CLONE_NEWUSER);
	if (child == 0) {
		close(hold[1]);
		_exit((int)read(hold[0], &byte, 1));
	}
	if (child > 0 && write_proc_file(child, "uid_map", uid_map) == 0 &&
	    write_proc_file(child, "gid_map", gid_map) == 0)
		fd = open_of_process(child, "ns/user", O_RDONLY);
	error = errno;
	close(hold[0]);
	close(hold[1]);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	errno = error;
	return fd;
}

/* Run newuidmap(1) or newgidmap(1), found by the supervisor: PROGRAM PID then the map's numbers. */
int step_map_helper(const struct step *step)
{
	struct digits pid;
	char numbers[1024];
	char *argv[64] = {(char *)step->arg[0].text,
			  (char *)digits(&pid, (uint64_t)state.init, 10)};
	char *const no_environment[] = {NULL};
	size_t count = 2;
	pid_t helper;
	int status;

	if (join(numbers, sizeof numbers, step->arg[1].text, NULL) < 0)
		return -1;
	for (char *word = numbers; word != NULL; count++) {
		char *blank = memchr(word, ' ', strlen(word));

		if (count + 1 == sizeof argv / sizeof argv[0]) {
			errno = E2BIG;
			return -1;
		}
		argv[count] = word;
		word = blank == NULL ? NULL : blank + 1;
		if (blank != NULL)
			*blank = '\0';
	}
	helper = fork_with(0);
	if (helper < 0)
		return -1;
	if (helper == 0) {
		int null = open("/dev/null", O_RDWR);

		set_signal_mask(0);
		/* Its words would land in the output of a command that never ran. */
		for (int fd = 0; fd <= 2; fd++)
			if (null < 0 || dup2(null, fd) < 0)
				_exit(127);
		execve(argv[0], argv, no_environment);
		_exit(127);
	}
	while (waitpid(helper, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	if (status != 0) {
		errno = EPERM;
		return -1;
	}
	return 0;
}

/*
 * From the caller's ids to those of the capsule. Sources are opened before this, with the caller's
 * own rights; files are made after it, for a file system takes no owner that the id map lacks.
 */
int step_identity(const struct step *step)
{
	uid_t uid = (uid_t)step->arg[0].number;
	gid_t gid = (gid_t)step->arg[1].number;

	return setresgid(gid) < 0 ? -1 : setresuid(uid);
}
