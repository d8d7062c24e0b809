/*
 * Text and memory: string(3) as far as it is used, numbers, paths that are put together.
 */
#ifndef CAPSULE_TEXT_H
#define CAPSULE_TEXT_H

#include <stddef.h>
#include <stdint.h>

/* string(3) */
void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *one, const void *other, size_t size);
void *memchr(const void *memory, int byte, size_t size);
size_t strlen(const char *text);
int strcmp(const char *one, const char *other);
int strncmp(const char *one, const char *other, size_t size);
char *strrchr(const char *text, int byte);
char *strstr(const char *text, const char *part);

/* The decimal number that TEXT begins with, after blanks; 0 without one. */
uint64_t to_number(const char *text);

/* NUMBER as text, at the end of ROOM. */
struct digits {
	char room[24];
};
const char *digits(struct digits *to, uint64_t number, unsigned base);

/* Join the words up to a NULL into TO; -1 with errno ENAMETOOLONG if they do not fit. */
int join(char *to, size_t room, ...);

#endif
