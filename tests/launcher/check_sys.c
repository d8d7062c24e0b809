/*
 * What the launcher has in place of a C library, used without one. The status is 0, or how many checks
 * there were up to the first that does not hold.
 */
#include "sys.h"
#include "text.h"

#include <linux/auxvec.h>
#include <linux/mman.h>

int main(void);

static int checks;

static void require(bool holds)
{
	checks++;
	if (!holds)
		_exit(checks);
}

/* The wait status of a child that does WHAT. */
static int status_of(void (*what)(void))
{
	int status = -1;
	pid_t child = fork_with(0);

	if (child == 0) {
		what();
		_exit(0);
	}
	require(child > 0 && waitpid(child, &status, 0) == child);
	return status;
}

/* Needs a relocation, and is constant after it. */
static const char *const words[] = {"one", "two"};

static void write_to_constant(void)
{
	*(const char *volatile *)(uintptr_t)&words[0] = "three";
}

static void overflow(void)
{
	char room[16];
	volatile size_t size = 64;

	memset(room, 'x', size);
	require(room[3] == 'x');
}

static void check_start(void)
{
	extern uintptr_t __stack_chk_guard;
	uintptr_t frame = (uintptr_t)__builtin_frame_address(0);

	require(frame % 16 == 0);
	require(strcmp(words[1], "two") == 0);
	require(__stack_chk_guard != 0 && (__stack_chk_guard & 0xff) == 0);
	require(getauxval(AT_PAGESZ) % 4096 == 0 && getauxval(AT_PAGESZ) > 0);
	require(getauxval(AT_CLKTCK) > 0);
	require(getauxval(12345) == 0);
	/* SIGSEGV, and the trap of a check that fails. */
	require((status_of(write_to_constant) & 0x7f) == 11);
	require((status_of(overflow) & 0x7f) != 0);
}

static void check_calls(void)
{
	struct pollfd wait = {.fd = -1, .events = POLLIN};
	struct timespec before, after;
	struct rlimit limit;
	struct stat file;
	int ends[2], status;
	char *page;
	char byte = 0;

	errno = 0;
	require(open("/no such file", O_RDONLY) == -1 && errno == ENOENT);
	require(read(-1, &byte, 1) == -1 && errno == EBADF);
	require(pipe2(ends, O_CLOEXEC) == 0 && write(ends[1], "x", 1) == 1);
	require(fcntl(ends[0], F_GETFD, 0) == FD_CLOEXEC);
	require(dup2(ends[0], ends[0]) >= 0 && fcntl(ends[0], F_GETFD, 0) == FD_CLOEXEC);
	require(dup2(-1, -1) == -1 && errno == EBADF);
	require(dup2(ends[0], 99) == 99 && fcntl(99, F_GETFD, 0) == 0);
	require(read(99, &byte, 1) == 1 && byte == 'x');
	require(fstat(ends[0], &file) == 0 && !is_directory(&file) && !is_device(&file));
	require(close(99) == 0 && close(99) == -1);
	ends[0] = open("/", O_RDONLY | O_DIRECTORY);
	require(fstat(ends[0], &file) == 0 && is_directory(&file));
	ends[0] = open("/dev/null", O_RDWR);
	require(fstat(ends[0], &file) == 0 && is_device(&file) && file.st_rdev == (1 << 8 | 3));
	/* Six arguments: the second page of a file of ones and twos. */
	ends[0] = (int)syscall(__NR_memfd_create, "x", 0);
	require(write(ends[0], "1", 1) == 1);
	require(pwrite(ends[0], "2", 1, (off_t)getauxval(AT_PAGESZ)) == 1);
	page = (char *)syscall(__NR_mmap, NULL, 1, PROT_READ, MAP_PRIVATE, ends[0],
			       getauxval(AT_PAGESZ));
	require(page[0] == '2');
	require(pread(ends[0], &byte, 1, 0) == 1 && byte == '1');
	require(clock_gettime(CLOCK_MONOTONIC, &before) == 0);
	require(poll(&wait, 1, 20) == 0);
	require(clock_gettime(CLOCK_MONOTONIC, &after) == 0);
	require((after.tv_sec - before.tv_sec) * 1000 +
			(after.tv_nsec - before.tv_nsec) / 1000000 >=
		19);
	require(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= 100);
	limit.rlim_cur = 77;
	require(setrlimit(RLIMIT_NOFILE, &limit) == 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0);
	require(limit.rlim_cur == 77);
	require(waitpid(-1, &status, 0) == -1 && errno == ECHILD);
	require(has_stopped(19 << 8 | 0x7f) && !has_stopped(0) && !has_stopped(11) &&
		!has_stopped(1 << 8));
}

static void check_memory(void)
{
	char one[] = "0123456789", other[sizeof one];
	char *memory = allocate(100000);

	require(memory != NULL && memory[0] == 0 && memory[99999] == 0);
	release(memory, 100000);
	require(allocate(SIZE_MAX / 2) == NULL && errno == ENOMEM);
	require(memcpy(other, one, sizeof one) == other && memcmp(one, other, sizeof one) == 0);
	require(memset(other + 2, 'x', 3) == other + 2 && strcmp(other, "01xxx56789") == 0);
	require(memcmp(one, other, 2) == 0 && memcmp(one, other, 3) < 0 &&
		memcmp(other, one, 3) > 0);
	require(memcmp("\x7f", "\x80", 1) < 0);
	require(memchr(one, '7', 10) == one + 7 && memchr(one, '7', 7) == NULL);
	require(memchr(one, '\0', sizeof one) == one + 10);
}

/* Wherever a text begins, up to the end of the memory that there is. */
static void check_edges(void)
{
	size_t page = getauxval(AT_PAGESZ);
	char *memory = allocate(2 * page), *end = memory + page;

	require(syscall(__NR_mprotect, end, page, PROT_NONE) == 0);
	for (size_t size = 0; size < 40; size++) {
		char *text = end - size - 1;

		memset(text - 16, 0, 16);
		memset(text, 'x', size);
		require(strlen(text) == size && memchr(text, '\0', size) == NULL);
		require(memchr(text, 'x', size + 1) == (size == 0 ? NULL : text));
		require(memchr(text, '\0', size + 1) == text + size);
		for (size_t at = 0; at < size; at++) {
			text[at] = 'y';
			require(memchr(text, 'y', size) == text + at);
			require(memchr(text, 'y', at) == NULL);
			text[at] = 'x';
		}
	}
}

static void check_text(void)
{
	struct digits room;
	char to[8];

	require(strlen("") == 0 && strlen("abc") == 3);
	require(strcmp("abc", "abc") == 0 && strcmp("ab", "abc") < 0 && strcmp("b", "abc") > 0);
	require(strcmp("\x80", "\x7f") > 0);
	require(strncmp("abx", "aby", 2) == 0 && strncmp("abx", "aby", 3) < 0);
	require(strncmp("a", "ab", 5) < 0);
	require(strrchr("a/b/c", '/')[1] == 'c' && strrchr("abc", '/') == NULL);
	require(*strrchr("abc", '\0') == '\0');
	require(strcmp(strstr("a\nPss: 12", "\nPss:"), "\nPss: 12") == 0);
	require(strstr("abc", "abcd") == NULL && strstr("", "") != NULL && strstr("", "a") == NULL);
	require(to_number("") == 0 && to_number("x1") == 0 && to_number("12x") == 12);
	require(to_number(" \t 34 5") == 34 && to_number("18446744073709551615") == UINT64_MAX);
	require(strcmp(digits(&room, 0, 10), "0") == 0);
	require(strcmp(digits(&room, UINT64_MAX, 10), "18446744073709551615") == 0);
	require(strcmp(digits(&room, 01777, 8), "1777") == 0);
	require(strcmp(digits(&room, UINT64_MAX, 8), "1777777777777777777777") == 0);
	require(join(to, sizeof to, "/", "abc", "/", "de", NULL) == 0 &&
		strcmp(to, "/abc/de") == 0);
	require(join(to, sizeof to, "/", "abc", "/", "def", NULL) == -1 && errno == ENAMETOOLONG);
	require(join(to, sizeof to, NULL) == 0 && to[0] == '\0');
}

int main(void)
{
	check_start();
	check_calls();
	check_memory();
	check_edges();
	check_text();
	return 0;
}
