/*
 * The terminal of the capsule, and the socket over which its master and other gifts leave.
 */
#include "launcher.h"

#include <asm/termios.h>

/* Without waiting: whoever takes it may do so later, so it must fit into the socket. */
int send_descriptor(int socket, int fd)
{
	char byte = 0;
	struct iovec data = {.iov_base = &byte, .iov_len = 1};
	struct passed passed = {PASSED_SIZE, SOL_SOCKET, SCM_RIGHTS, fd};
	const struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &passed,
		.msg_controllen = sizeof passed,
	};

	return syscall(__NR_sendmsg, socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}

/* Without waiting, either. *FD stays as it is where the message has none. */
ssize_t receive_descriptor(int socket, int *fd)
{
	char byte;
	struct iovec data = {.iov_base = &byte, .iov_len = 1};
	struct passed passed = {0};
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &passed,
		.msg_controllen = sizeof passed,
	};
	ssize_t got = syscall(__NR_recvmsg, socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);

	if (got > 0 && passed.size == PASSED_SIZE && passed.type == SCM_RIGHTS)
		*fd = passed.fd;
	return got;
}

/* The supervisor takes gifts when the command runs. */
int send_gift(int fd)
{
	return send_descriptor(GIFT_FD, fd);
}

/*
 * A terminal of the capsule's own, from its own devpts, so that what runs inside never holds the
 * user's. Init becomes its controlling process; the command, in a process group of its own whose
 * parent is in the same session, can be stopped and continued from the keyboard.
 */
int step_terminal(const struct step *step)
{
	cleanup_fd int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	struct winsize size = {
		.ws_row = (unsigned short)step->arg[1].number,
		.ws_col = (unsigned short)step->arg[2].number,
	};
	struct termios mode;
	int locked = 0;

	state.slave_at = (unsigned)step->arg[0].number;
	if (master < 0 || ioctl(master, TIOCSPTLCK, &locked) < 0)
		return -1;
	state.slave = (int)syscall(__NR_ioctl, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (state.slave < 0 || ioctl(state.slave, TIOCSCTTY, NULL) < 0)
		return -1;
	if (ioctl(state.slave, TIOCSWINSZ, &size) < 0 || ioctl(state.slave, TCGETS, &mode) < 0)
		return -1;
	mode.c_iflag |= IUTF8;
	/* Output alone goes to a terminal that is not raw: leave newlines to that one. */
	if ((state.slave_at & 1) == 0)
		mode.c_oflag &= ~(unsigned)OPOST;
	if (ioctl(state.slave, TCSETS, &mode) < 0)
		return -1;
	/* The supervisor is the only one who holds it from here on. */
	return send_gift(master);
}

/*
 * A process group of its own, in the foreground of the terminal if there is one. Its parent, init,
 * is of the same session, so the group is not orphaned and the keyboard can stop it.
 */
int take_terminal(void)
{
	pid_t self;

	if (syscall(__NR_setpgid, 0, 0) < 0)
		return -1;
	if (state.slave < 0)
		return 0;
	self = getpid();
	/* SIGTTOU is blocked, as is everything. */
	if (ioctl(state.slave, TIOCSPGRP, &self) < 0)
		return -1;
	for (int fd = 0; fd <= 2; fd++)
		if ((state.slave_at & 1u << fd) != 0 && dup2(state.slave, fd) < 0)
			return -1;
	return 0;
}

/* Process group in the foreground of the terminal, else the command's own. */
pid_t foreground(pid_t command)
{
	pid_t group = -1;

	if (state.slave < 0 || ioctl(state.slave, TIOCGPGRP, &group) < 0)
		return command;
	return group > 1 ? group : command;
}
