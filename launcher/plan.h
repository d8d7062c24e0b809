/*
 * The plan: what the supervisor decided, as a list of steps.
 */
#ifndef CAPSULE_PLAN_H
#define CAPSULE_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Where a step may stand. A plan goes through these once, in this order. */
enum phase { LAUNCH = 1, INIT = 2, COMMAND = 4 };

union arg {
	const char *text;
	uint64_t number;
};

struct step;
typedef int (*step_function)(const struct step *step);

struct step_kind {
	const char *word;
	unsigned phases;
	const char *signature;
	step_function run; /* 0, or -1 with errno set */
};

struct step {
	const struct step_kind *kind;
	size_t count;
	union arg *arg;
};

struct plan {
	size_t count;
	struct step *step;
	size_t size; /* of the memory that holds the steps, and behind them their arguments */
};

/* Larger than any argument list and environment that execve(2) takes, and files of several MiB. */
#define PLAN_MAX (40u << 20)
#define PLAN_VERSION "capsule-plan 1"

extern const struct step_kind step_kinds[];
extern const size_t step_kind_count;

/*
 * Parse TEXT, which must stay in place while the plan is used: 0, EPROTO or ENOMEM. FIRST is LAUNCH for
 * a whole plan, COMMAND for the rest of one.
 */
int plan_parse(struct plan *plan, char *text, size_t size, enum phase first);

/* First step at or after FROM that does not belong to the PHASE. */
size_t plan_phase_end(const struct plan *plan, size_t from, enum phase phase);

/* Give back what a plan that was parsed holds. The launcher needs its own to the end. */
void plan_release(struct plan *plan);

/* Turn hexadecimal digits into the bytes that they are, in place. How many, or -1: there are others. */
ptrdiff_t decode_hex(char *text);

#endif
