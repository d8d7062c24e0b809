/*
 * Fuzzing of the plan parser, with libFuzzer or, where STANDALONE is defined, with a small mutator
 * of its own. What is accepted must be said in one way only: written again, it is the same bytes.
 */
#include "plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The vocabulary without what it does. */
#define STEP(function, word, phases, signature) {word, phases, signature, NULL},
const struct step_kind step_kinds[] = {
#include "steps.def"
};
#undef STEP
const size_t step_kind_count = sizeof step_kinds / sizeof step_kinds[0];

static void require(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "does not hold: %s\n", what);
	abort();
}

/* Compare WORD, with its NUL, with what stands at *AT. */
static void expect(const char *word, const char **at, const char *end)
{
	size_t size = strlen(word) + 1;

	require((size_t)(end - *at) >= size && memcmp(*at, word, size) == 0, "same bytes");
	*at += size;
}

static void expect_number(uint64_t number, const char **at, const char *end)
{
	char word[32];

	snprintf(word, sizeof word, "%llu", (unsigned long long)number);
	expect(word, at, end);
}

static void expect_step(const struct step *step, const char **at, const char *end)
{
	const char *letters = step->kind->signature;
	bool variadic = letters[0] == '*';

	require(variadic || step->count == strlen(letters), "number of arguments");
	expect(step->kind->word, at, end);
	expect_number(step->count, at, end);
	for (size_t i = 0; i < step->count; i++) {
		if (!variadic && letters[i] == 'n') {
			expect_number(step->arg[i].number, at, end);
			continue;
		}
		require(variadic || letters[i] != 'p' || step->arg[i].text[0] == '/', "path");
		expect(step->arg[i].text, at, end);
	}
}

static void check_accepted(const struct plan *plan, const char *text, size_t size)
{
	const char *at = text, *end = text + size;

	expect(PLAN_VERSION, &at, end);
	for (size_t i = 0; i < plan->count; i++)
		expect_step(&plan->step[i], &at, end);
	require(at == end, "nothing left over");
	require(plan->count > 0, "a plan has a step");
	require(plan_phase_end(plan, plan->count, COMMAND) == plan->count, "end");
}

/* Whether DATA was accepted as what begins in FIRST. The parser gets a copy that ends where its memory
 * ends. */
static bool parse_as(const uint8_t *data, size_t size, enum phase first)
{
	char *text = malloc(size);
	struct plan plan;
	int error;

	require(text != NULL || size == 0, "memory");
	if (size > 0)
		memcpy(text, data, size);
	error = plan_parse(&plan, text, size, first);
	if (error == 0) {
		check_accepted(&plan, (const char *)data, size);
		plan_release(&plan);
	} else {
		require(error == EPROTO && plan.step == NULL && plan.count == 0, "refused");
	}
	free(text);
	return error == 0;
}

/* As a plan, or as the rest of one; never as both. */
static bool parse(const uint8_t *data, size_t size)
{
	bool whole = parse_as(data, size, LAUNCH), rest = parse_as(data, size, COMMAND);

	require(!(whole && rest), "one kind");
	return whole || rest;
}

#ifndef STANDALONE

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	parse(data, size);
	return 0;
}

#else

static uint64_t random_state = 0x9e3779b97f4a7c15;

static size_t random_below(size_t limit)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (size_t)(random_state % limit);
}

/* Change, drop, repeat or cut a little of the SIZE bytes in DATA, which has room for twice as many.
 */
static size_t mutate(uint8_t *data, size_t size)
{
	static const char likely[] = "\0\0\0/0123456789 -";
	size_t at = random_below(size), count = random_below(size - at < 64 ? size - at : 64) + 1;

	switch (random_below(5)) {
	case 0:
		data[at] = (uint8_t)random_below(256);
		return size;
	case 1:
		data[at] = (uint8_t)likely[random_below(sizeof likely)];
		return size;
	case 2:
		memmove(data + at, data + at + count, size - at - count);
		return size - count;
	case 3:
		memmove(data + at + count, data + at, size - at);
		return size + count;
	default:
		return at;
	}
}

static size_t read_file(const char *path, uint8_t *data, size_t room)
{
	FILE *file = fopen(path, "rb");
	size_t size;

	require(file != NULL, "a seed");
	size = fread(data, 1, room, file);
	fclose(file);
	return size;
}

/* fuzz_plan RUNS SEED...: each seed must be accepted as it is; then RUNS variants of each. */
int main(int argc, char **argv)
{
	static uint8_t seed[1 << 16], data[1 << 18];
	unsigned long runs = argc > 1 ? strtoul(argv[1], NULL, 10) : 0, accepted = 0;

	for (int i = 2; i < argc; i++) {
		size_t length = read_file(argv[i], seed, sizeof seed);

		require(parse(seed, length), "a seed is accepted");
		for (unsigned long run = 0; run < runs; run++) {
			size_t size = length;

			memcpy(data, seed, length);
			for (size_t times = random_below(4) + 1; times > 0 && size > 0; times--)
				size = mutate(data, size);
			accepted += parse(data, size);
		}
	}
	printf("%lu accepted\n", accepted);
	return 0;
}

#endif
