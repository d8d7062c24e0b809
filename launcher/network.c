/*
 * The steps that concern the network and UTS namespaces.
 *
 * Where a capsule may reach some hosts, every address is its own namespace's (AnyIP): a route of type
 * local for all of them. What goes to a socket that is made here arrives at that; what does not is
 * refused by the kernel at once. The sockets leave as gifts, and who has them dials from outside.
 */
#include "launcher.h"

#include <linux/filter.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>

/* linux/if.h, which needs a C library's sockets: struct ifreq, IFF_UP, IFF_RUNNING, SIOCSIFFLAGS. */
struct interface {
	char name[16];
	short flags;
	char unused[22];
};
enum { UP = 1, RUNNING = 0x40, SET_FLAGS = 0x8914 };

/* The loopback interface's, in every namespace. */
enum { LOOPBACK = 1 };

/* socket(7), ipv6(7), listen(2): what the kernel's headers leave out or need more for. */
enum { SO_REUSEADDR = 2, SO_ATTACH_FILTER = 26, IPPROTO_IPV6 = 41, IPV6_V6ONLY = 26 };
enum { IPV6_FREEBIND = 78, BACKLOG = 1024 };

static uint16_t big_endian(uint64_t number)
{
	return (uint16_t)(number >> 8 | (number & 0xff) << 8);
}

static int new_socket(int family, int type, int protocol)
{
	return (int)syscall(__NR_socket, family, type | SOCK_CLOEXEC, protocol);
}

static int set_option(int fd, int level, int option)
{
	const int on = 1;

	return (int)syscall(__NR_setsockopt, fd, level, option, &on, sizeof on);
}

/*
 * A new network namespace has a loopback interface that is down; the kernel adds 127.0.0.1 and ::1.
 */
int step_loopback(const struct step *step)
{
	cleanup_fd int fd = new_socket(AF_INET, SOCK_DGRAM, 0);
	struct interface request = {.name = "lo", .flags = UP | RUNNING};

	(void)step;
	return fd < 0 ? -1 : ioctl(fd, SET_FLAGS, &request);
}

int step_hostname(const struct step *step)
{
	return (int)syscall(__NR_sethostname, step->arg[0].text, strlen(step->arg[0].text));
}

/* --- every address is here ------------------------------------------------------------------- */

/* rtnetlink(7), of four bytes. */
struct attribute {
	struct rtattr head;
	uint32_t value;
};

/* Send a request, and return the error that its answer says (struct nlmsgerr), or -1 without one. */
static int ask_kernel(int fd, struct nlmsghdr *request, size_t size)
{
	struct {
		struct nlmsghdr head;
		int error;
		char request[256];
	} answer;
	const ssize_t least = offsetof(typeof(answer), request);

	request->nlmsg_len = (uint32_t)size;
	request->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
	if (write(fd, request, size) < 0 || read(fd, &answer, sizeof answer) < least)
		return -1;
	errno = answer.head.nlmsg_type == NLMSG_ERROR ? -answer.error : EPROTO;
	return errno;
}

static int add_local_route(int fd, int family)
{
	struct {
		struct nlmsghdr head;
		struct rtmsg route;
		struct attribute interface;
	} message = {
		.head = {.nlmsg_type = RTM_NEWROUTE},
		.route = {.rtm_family = (unsigned char)family,
			  .rtm_table = RT_TABLE_LOCAL,
			  .rtm_protocol = RTPROT_BOOT,
			  .rtm_scope = RT_SCOPE_HOST,
			  .rtm_type = RTN_LOCAL},
		.interface = {{sizeof message.interface, RTA_OIF}, LOOPBACK},
	};

	return ask_kernel(fd, &message.head, sizeof message);
}

static int add_address(int fd, uint32_t address)
{
	struct {
		struct nlmsghdr head;
		struct ifaddrmsg about;
		struct attribute local, address;
	} message = {
		.head = {.nlmsg_type = RTM_NEWADDR},
		.about = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = LOOPBACK},
		.local = {{sizeof message.local, IFA_LOCAL}, address},
		.address = {{sizeof message.address, IFA_ADDRESS}, address},
	};

	return ask_kernel(fd, &message.head, sizeof message);
}

/* any-address ADDRESS: four bytes, in hex digits. */
int step_any_address(const struct step *step)
{
	cleanup_fd int fd = new_socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	char *text = (char *)step->arg[0].text;
	uint32_t address;

	if (fd < 0)
		return -1;
	if (strlen(text) != 2 * sizeof address || decode_hex(text) != sizeof address) {
		errno = EPROTO;
		return -1;
	}
	memcpy(&address, text, sizeof address);
	/* Who asks for names of the kinds of address that there are (AI_ADDRCONFIG) has this one. */
	if (add_address(fd, address) != 0 || add_local_route(fd, AF_INET) != 0)
		return -1;
	/* Where IPv6 is missing or switched off, which the kernel says, nothing is reached by it either. */
	return add_local_route(fd, AF_INET6) < 0 ? -1 : 0;
}

/* --- sockets --------------------------------------------------------------------------------- */

struct address {
	uint16_t family, port;
	uint8_t text[24]; /* sockaddr_in: 4 of 12 bytes; sockaddr_in6: at 4, 16 of 24 */
};

/* What is bound to an address of 4 or 16 bytes and a port, and listens there if it is a stream. */
static int open_listener(int type, const uint8_t *address, size_t size, uint64_t port)
{
	const int family = size == 4 ? AF_INET : AF_INET6;
	struct address at = {.family = (uint16_t)family, .port = big_endian(port)};
	int fd;

	if ((size != 4 && size != 16) || port == 0 || port > UINT16_MAX) {
		errno = EPROTO;
		return -1;
	}
	memcpy(at.text + (size == 4 ? 0 : 4), address, size);
	fd = new_socket(family, type | O_NONBLOCK, 0);
	if (fd < 0)
		return -1;
	/* IPv6 takes no address for its own only because a route does. */
	if ((family == AF_INET6 && (set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY) < 0 ||
				    set_option(fd, IPPROTO_IPV6, IPV6_FREEBIND) < 0)) ||
	    set_option(fd, SOL_SOCKET, SO_REUSEADDR) < 0 ||
	    syscall(__NR_bind, fd, &at, size == 4 ? 16 : 28) < 0 ||
	    (type == SOCK_STREAM && syscall(__NR_listen, fd, BACKLOG) < 0))
		return fail_closing(fd);
	return fd;
}

/* listen TYPE ADDRESS PORT: the address in hex digits. */
int step_listen(const struct step *step)
{
	char *text = (char *)step->arg[1].text;
	ptrdiff_t size = decode_hex(text);
	cleanup_fd int fd = -1;

	if (size >= 0)
		fd = open_listener((int)step->arg[0].number, (const uint8_t *)text, (size_t)size,
				   step->arg[2].number);
	else
		errno = EPROTO;
	return fd < 0 ? -1 : send_gift(fd);
}

/* For what follows: go on only with this value, or only with another, and take nothing else. */
#define TAKE(bytes) BPF_STMT(BPF_RET | BPF_K, bytes)
#define ONLY(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 1, 0), TAKE(0)
#define NOT(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1), TAKE(0)
#define LOAD(how, at) BPF_STMT(BPF_LD | (how), at)
#define BITS(mask) BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask)
#define HEADER BPF_STMT(BPF_LDX | BPF_B | BPF_MSH, 0)
#define BYTE BPF_B | BPF_ABS
#define HALF BPF_H | BPF_ABS
#define WORD BPF_W | BPF_ABS
#define BYTE_BEHIND BPF_B | BPF_IND
#define HALF_BEHIND BPF_H | BPF_IND
#define WORD_BEHIND BPF_W | BPF_IND

/*
 * What the kernel answers where nobody takes what came: to a connection a reset without a number of its
 * own, to a datagram "port unreachable". raw(7) begins with the IP header, ipv6(7) behind it. Nothing of
 * 127.0.0.0/8, which is the command's own.
 */
static const struct sock_filter resets[] = {
	LOAD(BYTE, 12),	      NOT(127), HEADER,	   LOAD(BYTE_BEHIND, 13), BITS(0x14), ONLY(0x14),
	LOAD(WORD_BEHIND, 4), ONLY(0),	TAKE(128),
};
static const struct sock_filter unreachables[] = {
	LOAD(BYTE, 12), NOT(127), HEADER, LOAD(HALF_BEHIND, 0), ONLY(0x0303), TAKE(128),
};
static const struct sock_filter resets6[] = {
	LOAD(BYTE, 13), BITS(0x14), ONLY(0x14), LOAD(WORD, 4), ONLY(0), TAKE(128),
};
static const struct sock_filter unreachables6[] = {LOAD(HALF, 0), ONLY(0x0104), TAKE(128)};

/* Not packet(7), which hears all at once: to close one takes until each CPU has been elsewhere. */
static const struct {
	int family, protocol;
	struct {
		unsigned short length;
		const struct sock_filter *filter;
	} program;
} answers[] = {
	{AF_INET, 6, {sizeof resets / sizeof *resets, resets}},
	{AF_INET, 1, {sizeof unreachables / sizeof *unreachables, unreachables}},
	{AF_INET6, 6, {sizeof resets6 / sizeof *resets6, resets6}},
	{AF_INET6, 58, {sizeof unreachables6 / sizeof *unreachables6, unreachables6}},
};

static int give_answers(int family, int protocol, const void *program, size_t size)
{
	cleanup_fd int fd = new_socket(family, SOCK_RAW | O_NONBLOCK, protocol);

	/* Without IPv6 there is nothing to tell of: a socket of no use stands for it. */
	if (fd < 0 && errno == EAFNOSUPPORT && family == AF_INET6)
		fd = new_socket(AF_INET, SOCK_RAW | O_NONBLOCK, 255);
	if (fd < 0 || syscall(__NR_setsockopt, fd, SOL_SOCKET, SO_ATTACH_FILTER, program, size) < 0)
		return -1;
	return send_gift(fd);
}

int step_refusals(const struct step *step)
{
	(void)step;
	for (size_t i = 0; i < sizeof answers / sizeof *answers; i++)
		if (give_answers(answers[i].family, answers[i].protocol, &answers[i].program,
				 sizeof answers[i].program) < 0)
			return -1;
	return 0;
}

/* --- sockets for who asks -------------------------------------------------------------------- */

/* What the other end of the gifts' socket asks for; src/capsule/confine/proxy/dial.py. */
struct request {
	uint32_t size; /* of the address: 4 or 16 */
	uint32_t port; /* to listen at; 0: of a socket that is to be connected */
	uint8_t address[16];
};

static bool serves;

/* sockets: init makes more of them, and only what a command could make as well. */
int step_sockets(const struct step *step)
{
	(void)step;
	serves = true;
	return fcntl(GIFT_FD, F_GETFD, 0);
}

int socket_requests(void)
{
	return serves ? GIFT_FD : -1;
}

/* Answer with a byte, an errno or 0 with the descriptor. */
void hear_request(void)
{
	struct request request;
	ssize_t got = read(GIFT_FD, &request, sizeof request);
	cleanup_fd int fd = -1;
	char error = 0;

	if (got < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (got != sizeof request) {
		close(GIFT_FD);
		serves = false;
		return;
	}
	if (request.port != 0)
		fd = open_listener(SOCK_STREAM, request.address, request.size, request.port);
	else
		fd = new_socket(request.size == 4 ? AF_INET : AF_INET6, SOCK_STREAM | O_NONBLOCK,
				0);
	if (fd >= 0 && send_descriptor(GIFT_FD, fd) == 0)
		return;
	error = (char)errno;
	(void)!write(GIFT_FD, &error, 1);
}
