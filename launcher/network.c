/*
 * The steps that concern the network and UTS namespaces.
 */
#include "launcher.h"

/* linux/if.h, which needs a C library's sockets: struct ifreq, IFF_UP, IFF_RUNNING, SIOCSIFFLAGS. */
struct interface {
	char name[16];
	short flags;
	char unused[22];
};
enum { UP = 1, RUNNING = 0x40, SET_FLAGS = 0x8914 };

/*
 * A new network namespace has a loopback interface that is down; the kernel adds 127.0.0.1 and ::1.
 */
int step_loopback(const struct step *step)
{
	cleanup_fd int fd = (int)syscall(__NR_socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct interface request = {.name = "lo", .flags = UP | RUNNING};

	(void)step;
	return fd < 0 ? -1 : ioctl(fd, SET_FLAGS, &request);
}

int step_hostname(const struct step *step)
{
	return (int)syscall(__NR_sethostname, step->arg[0].text, strlen(step->arg[0].text));
}
