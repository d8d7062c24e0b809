/*
 * Reading a plan.
 *
 *	capsule-plan 1 NUL { WORD NUL COUNT NUL { ARGUMENT NUL } }
 *
 * Everything is checked before anything is done. What refuses the whole: an unknown step, a wrong
 * number of arguments, a number that is none, a relative path, a step out of its phase, bytes left.
 */
#include "plan.h"
#include "sys.h"
#include "text.h"

struct reader {
	char *at;
	char *end;
};

static const char *next_word(struct reader *in)
{
	char *word = in->at;
	char *nul = word == in->end ? NULL : memchr(word, '\0', (size_t)(in->end - word));

	if (nul == NULL)
		return NULL;
	in->at = nul + 1;
	return word;
}

/* Decimal digits only: no sign, no space, no leading zero, no overflow. */
static bool parse_number(const char *word, uint64_t *number)
{
	uint64_t value = 0;

	if (word[0] == '\0' || (word[0] == '0' && word[1] != '\0'))
		return false;
	for (; *word != '\0'; word++) {
		unsigned digit = (unsigned)(unsigned char)*word - '0';

		if (digit > 9 || value > (UINT64_MAX - digit) / 10)
			return false;
		value = value * 10 + digit;
	}
	*number = value;
	return true;
}

static const struct step_kind *find_kind(const char *word)
{
	for (size_t i = 0; i < step_kind_count; i++)
		if (step_kinds[i].word[0] == word[0] && strcmp(step_kinds[i].word, word) == 0)
			return &step_kinds[i];
	return NULL;
}

static bool parse_argument(char letter, const char *word, union arg *arg)
{
	if (letter == 'n')
		return parse_number(word, &arg->number);
	arg->text = word;
	return letter != 'p' || word[0] == '/';
}

static bool parse_arguments(struct reader *in, struct step *step, union arg *arg)
{
	const char *letters = step->kind->signature;
	bool variadic = letters[0] == '*';

	if (!variadic && strlen(letters) != step->count)
		return false;
	step->arg = arg;
	for (size_t i = 0; i < step->count; i++) {
		const char *word = next_word(in);

		if (word == NULL || !parse_argument(variadic ? 's' : letters[i], word, &arg[i]))
			return false;
	}
	return true;
}

/* One step. Its arguments go to ARG, which has a place for every word of the plan. */
static bool parse_step(struct reader *in, struct step *step, union arg *arg)
{
	const char *word = next_word(in);
	const char *count = next_word(in);
	uint64_t number;

	if (word == NULL || count == NULL || !parse_number(count, &number))
		return false;
	if (number > (uint64_t)(in->end - in->at))
		return false;
	step->count = (size_t)number;
	step->kind = find_kind(word);
	return step->kind != NULL && parse_arguments(in, step, arg);
}

size_t plan_phase_end(const struct plan *plan, size_t from, enum phase phase)
{
	while (from < plan->count && (plan->step[from].kind->phases & phase) != 0)
		from++;
	return from;
}

/*
 * The phases follow each other, and the end is there: an exec, a stop, or the wait for the rest, once,
 * at the end. Where there is a command, the step before its first one forks it; the rest of a plan is
 * the command's alone.
 */
static bool check_order(const struct plan *plan, enum phase first)
{
	bool is_rest = first == COMMAND;
	size_t command = is_rest ? 0 : plan_phase_end(plan, plan_phase_end(plan, 0, LAUNCH), INIT);
	bool has_command = command < plan->count;

	if (plan_phase_end(plan, command, COMMAND) != plan->count || (command == 0 && !is_rest))
		return false;
	for (size_t i = 0; i < plan->count; i++) {
		const char *word = plan->step[i].kind->word;
		bool waits = strcmp(word, "rest") == 0;
		bool ends = strcmp(word, "exec") == 0 || strcmp(word, "stop") == 0 || waits;
		bool forks = strcmp(word, "fork") == 0;

		if (ends != (i + 1 == plan->count) || (waits && is_rest))
			return false;
		if (forks != (has_command && i + 1 == command))
			return false;
	}
	return true;
}

int plan_parse(struct plan *plan, char *text, size_t size, enum phase first)
{
	struct reader in = {text, text + size};
	const char *version = next_word(&in);
	size_t words = 0, steps;
	union arg *arg;

	*plan = (struct plan){0};
	if (version == NULL || strcmp(version, PLAN_VERSION) != 0 || text[size - 1] != '\0')
		return EPROTO;
	for (struct reader rest = in; next_word(&rest) != NULL;)
		words++;
	/* A step has at least two words, and no more arguments than there are words. */
	steps = (words / 2 + 1) * sizeof *plan->step;
	plan->size = steps + (words + 1) * sizeof *arg;
	plan->step = allocate(plan->size);
	if (plan->step == NULL) {
		*plan = (struct plan){0};
		return ENOMEM;
	}
	arg = (union arg *)((char *)plan->step + steps);
	while (in.at < in.end) {
		struct step *step = &plan->step[plan->count++];

		if (!parse_step(&in, step, arg))
			goto refuse;
		arg += step->count;
	}
	if (plan->count > 0 && check_order(plan, first))
		return 0;
refuse:
	plan_release(plan);
	return EPROTO;
}

void plan_release(struct plan *plan)
{
	release(plan->step, plan->size);
	*plan = (struct plan){0};
}

/* The value of a hexadecimal digit, or -1. */
static int digit_value(char digit)
{
	if (digit >= '0' && digit <= '9')
		return digit - '0';
	return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

ptrdiff_t decode_hex(char *text)
{
	ptrdiff_t size = 0;

	for (const char *from = text; *from != '\0'; from += 2) {
		int high = digit_value(from[0]);
		int low = high < 0 ? -1 : digit_value(from[1]);

		if (low < 0)
			return -1;
		text[size++] = (char)(high << 4 | low);
	}
	return size;
}
