/*
 * Executes the launcher under the eyes of a test: each of its system calls, and those of all that
 * it starts, waits until the test has said whether it is to be done or to fail; seccomp_unotify(2).
 *
 * Descriptor SOCKET leads to the test, who gets the listener over it and then closes its own copy.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SOCKET 40

static int send_descriptor(int fd)
{
	char byte = 0, room[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec data = {.iov_base = &byte, .iov_len = 1};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = room,
		.msg_controllen = sizeof room,
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof fd);
	return sendmsg(SOCKET, &message, 0) < 0 ? -1 : 0;
}

/* Calls that are made without asking: those that end something, and those in QUIET. */
static const unsigned quiet[] = {SYS_exit_group, SYS_exit, SYS_rt_sigreturn, QUIET};
#define QUIET_COUNT (sizeof quiet / sizeof quiet[0])

static int install_filter(void)
{
	struct sock_filter filter[QUIET_COUNT + 6] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	/* The one message by which the listener itself leaves goes unasked too. */
	const struct sock_filter rest[] = {
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sendmsg, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SOCKET, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
	};
	const struct sock_fprog program = {.len = QUIET_COUNT + 6, .filter = filter};

	for (unsigned char i = 0; i < QUIET_COUNT; i++)
		filter[i + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, quiet[i],
							     QUIET_COUNT - i + 2, 0);
	memcpy(filter + QUIET_COUNT + 1, rest, sizeof rest);
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
			    &program);
}

int main(void)
{
	char *const argv[] = {"capsule-launch", NULL}, *const envp[] = {NULL};
	int listener;

	/* Who is not root may install a filter only so. */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return 1;
	listener = install_filter();
	if (listener < 0 || send_descriptor(listener) < 0)
		return 1;
	close(listener);
	close(SOCKET);
	execve(LAUNCHER, argv, envp);
	return 1;
}
