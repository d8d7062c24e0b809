/*
 * The steps that concern the network and UTS namespaces.
 */
#include "launcher.h"

#include <net/if.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/*
 * A new network namespace has a loopback interface that is down; the kernel adds 127.0.0.1 and ::1.
 */
int step_loopback(const struct step *step)
{
	cleanup_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};

	(void)step;
	return fd < 0 ? -1 : ioctl(fd, SIOCSIFFLAGS, &request);
}

int step_hostname(const struct step *step)
{
	return sethostname(step->arg[0].text, strlen(step->arg[0].text));
}
