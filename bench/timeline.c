/*
 * Notes when each step of the launcher is done. Linked around its own functions (ld's --wrap), so that
 * nothing of it is in the launcher's sources. The notes lie in a file that all its processes map.
 */
#include "launcher.h"

#include <linux/mman.h>

struct note {
	int64_t at; /* in the first: how many there are */
	char what[24];
};

#define NOTES 1024
static struct note *notes;

static void note(const char *what)
{
	int64_t number;

	if (notes == NULL) {
		cleanup_fd int fd = open(NOTES_FILE, O_RDWR | O_CLOEXEC);

		notes = (struct note *)syscall(__NR_mmap, NULL, NOTES * sizeof *notes,
					       PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	}
	number = __atomic_add_fetch(&notes[0].at, 1, __ATOMIC_SEQ_CST);
	if (number < NOTES) {
		notes[number].at = now_ns();
		join(notes[number].what, sizeof notes[number].what, what, NULL);
	}
}

/* A step is noted when it is done, but the one that does not return. */
#define STEP(function, word, phases, signature)                                                    \
	int __real_step_##function(const struct step *step);                                       \
	int __wrap_step_##function(const struct step *step);                                       \
	int __wrap_step_##function(const struct step *step)                                        \
	{                                                                                          \
		bool last = strcmp(word, "exec") == 0;                                             \
		int result;                                                                        \
                                                                                                   \
		if (last)                                                                          \
			note(word);                                                                \
		result = __real_step_##function(step);                                             \
		if (!last)                                                                         \
			note(word);                                                                \
		return result;                                                                     \
	}
#include "steps.def"
#undef STEP

/* seccomp.c asks for its own step by address, so this one is not wrapped: its time is exec's. */
int __real_step_seccomp(const struct step *step)
{
	return step_seccomp(step);
}

int __real_plan_parse(struct plan *plan, char *text, size_t size);
int __wrap_plan_parse(struct plan *plan, char *text, size_t size);

int __wrap_plan_parse(struct plan *plan, char *text, size_t size)
{
	int result;

	note("launcher");
	result = __real_plan_parse(plan, text, size);
	note("plan");
	return result;
}

_Noreturn void __real_command_main(size_t first_step);
_Noreturn void __wrap_command_main(size_t first_step);

_Noreturn void __wrap_command_main(size_t first_step)
{
	note("command");
	__real_command_main(first_step);
}

int __real_send_record(const struct record *record);
int __wrap_send_record(const struct record *record);

int __wrap_send_record(const struct record *record)
{
	if (record->kind == RECORD_ENDED)
		note("end");
	return __real_send_record(record);
}
