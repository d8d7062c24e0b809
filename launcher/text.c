/*
 * Text and memory. A build with a C library, for the sanitizers, has string(3) from there.
 */
#include "text.h"
#include "sys.h"

#include <stdarg.h>

#if !__STDC_HOSTED__

/* The compiler would make of such a loop a call of the very function that it stands in. */
#define NOT_A_CALL __asm__ volatile("")

void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		((char *)to)[i] = ((const char *)from)[i];
		NOT_A_CALL;
	}
	return to;
}

void *memset(void *to, int byte, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		((char *)to)[i] = (char)byte;
		NOT_A_CALL;
	}
	return to;
}

int memcmp(const void *one, const void *other, size_t size)
{
	const unsigned char *a = one, *b = other;

	for (size_t i = 0; i < size; i++)
		if (a[i] != b[i])
			return a[i] - b[i];
	return 0;
}

typedef uint64_t __attribute__((may_alias)) eight;
enum { LINE = 4 * sizeof(eight) };

/* Not zero where one of the bytes is: only then does taking 1 off borrow from above its highest bit. */
static uint64_t zeros(uint64_t bytes)
{
	return (bytes - 0x0101010101010101) & ~bytes & 0x8080808080808080;
}

static bool has(const eight line[4], uint64_t pattern)
{
	return (zeros(line[0] ^ pattern) | zeros(line[1] ^ pattern) | zeros(line[2] ^ pattern) |
		zeros(line[3] ^ pattern)) != 0;
}

/* By lines where it can, for plans are long. One that is aligned does not reach into another page. */
void *memchr(const void *memory, int byte, size_t size)
{
	const unsigned char *at = memory, wanted = (unsigned char)byte;
	const uint64_t pattern = wanted * 0x0101010101010101u;

	while (size > 0 && *at != wanted) {
		at++;
		size--;
		while ((uintptr_t)at % LINE == 0 && size >= LINE &&
		       !has((const void *)at, pattern)) {
			at += LINE;
			size -= LINE;
		}
	}
	return size > 0 ? (void *)(uintptr_t)at : NULL;
}

size_t strlen(const char *text)
{
	return (size_t)((const char *)memchr(text, '\0', SIZE_MAX - (uintptr_t)text) - text);
}

int strcmp(const char *one, const char *other)
{
	return strncmp(one, other, SIZE_MAX);
}

int strncmp(const char *one, const char *other, size_t size)
{
	for (size_t i = 0; i < size; i++)
		if (one[i] != other[i] || one[i] == '\0')
			return (unsigned char)one[i] - (unsigned char)other[i];
	return 0;
}

char *strrchr(const char *text, int byte)
{
	for (size_t i = strlen(text) + 1; i > 0; i--)
		if (text[i - 1] == (char)byte)
			return (char *)(uintptr_t)&text[i - 1];
	return NULL;
}

char *strstr(const char *text, const char *part)
{
	for (size_t size = strlen(part);; text++) {
		if (strncmp(text, part, size) == 0)
			return (char *)(uintptr_t)text;
		if (*text == '\0')
			return NULL;
	}
}

#endif

uint64_t to_number(const char *text)
{
	uint64_t number = 0;

	while (*text == ' ' || *text == '\t')
		text++;
	for (; *text >= '0' && *text <= '9'; text++)
		number = number * 10 + (uint64_t)(*text - '0');
	return number;
}

const char *digits(struct digits *to, uint64_t number, unsigned base)
{
	char *at = to->room + sizeof to->room - 1;

	*at = '\0';
	do {
		*--at = (char)('0' + number % base);
		number /= base;
	} while (number != 0);
	return at;
}

int join(char *to, size_t room, ...)
{
	size_t used = 0;
	const char *word;
	va_list words;

	va_start(words, room);
	while ((word = va_arg(words, const char *)) != NULL) {
		size_t size = strlen(word);

		if (size >= room - used) {
			va_end(words);
			errno = ENAMETOOLONG;
			return -1;
		}
		memcpy(to + used, word, size);
		used += size;
	}
	va_end(words);
	to[used] = '\0';
	return 0;
}
