/*
 * What this kernel, under the filters around us, lets us call: asked for by a plan that does nothing
 * else, or taken for granted by one that has it checked.
 */
#include "launcher.h"

#include <linux/prctl.h>
#include <linux/seccomp.h>

/* Whether the kernel has the call: anything but ENOSYS. Bad arguments make it harmless. */
static bool has_call(long number)
{
	return syscall(number, -1, 0, 0, 0, 0) >= 0 || errno != ENOSYS;
}

/*
 * The same, where no permission is needed either: a filter that answers EPERM takes the call away.
 */
static bool may_call(long number)
{
	return has_call(number) && errno != EPERM && errno != EACCES;
}

enum { EXPECTED = 6 };

static void ask(int64_t value[EXPECTED])
{
	long abi = syscall(__NR_landlock_create_ruleset, NULL, 0, 1 /* ..._VERSION */);

	value[0] = may_call(__NR_mount_setattr);
	value[1] = may_call(__NR_openat2);
	value[2] = has_call(__NR_fsopen) && may_call(__NR_open_tree) && has_call(__NR_move_mount);
	value[3] = abi > 0 ? abi : 0;
	value[4] = prctl(PR_GET_SECCOMP, 0, 0);
	/* With no filter given: EFAULT where filters exist, EINVAL where they do not. */
	value[5] = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 0) < 0 && errno == EFAULT;
}

/* Tell the supervisor what this kernel, under these filters, lets us call. */
int step_features(const struct step *step)
{
	struct record record = {.kind = RECORD_FEATURES};

	(void)step;
	ask(record.value);
	record.value[EXPECTED] = can_listen(); /* it leaves a filter behind, of which this ends */
	return send_record(&record);
}

/* Go on only where it is exactly what the supervisor took for granted. */
int step_expect(const struct step *step)
{
	int64_t value[EXPECTED];

	ask(value);
	for (int i = 0; i < EXPECTED; i++)
		if (value[i] != (int64_t)step->arg[i].number) {
			errno = EOPNOTSUPP;
			return -1;
		}
	return 0;
}

/* The end of a plan that tries the host and runs nothing. */
int step_stop(const struct step *step)
{
	const struct record ready = {.kind = RECORD_READY, .value = {1}};

	(void)step;
	_exit(send_record(&ready) < 0 ? EXIT_SETUP : 0);
}
