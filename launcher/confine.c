/*
 * What confines the command, performed by itself: limits, CPUs, capabilities, identity.
 */
#include "launcher.h"

#include <linux/capability.h>
#include <linux/prctl.h>
#include <linux/securebits.h>

/* At most what is asked for: a caller's own hard limit that is lower cannot be raised. */
int step_rlimit(const struct step *step)
{
	uint64_t soft = step->arg[1].number, hard = step->arg[2].number;
	struct rlimit limit;

	if (getrlimit((int)step->arg[0].number, &limit) < 0)
		return -1;
	limit.rlim_max = hard < limit.rlim_max ? hard : limit.rlim_max;
	limit.rlim_cur = soft < limit.rlim_max ? soft : limit.rlim_max;
	return setrlimit((int)step->arg[0].number, &limit);
}

/* Exactly so: EPERM where the caller's own hard limit is lower. */
int step_setrlimit(const struct step *step)
{
	const struct rlimit limit = {step->arg[1].number, step->arg[2].number};

	return setrlimit((int)step->arg[0].number, &limit);
}

/* ceilings { RESOURCE MOST }: what is higher is lowered, and nothing raised. */
int step_ceilings(const struct step *step)
{
	for (size_t i = 0; i + 1 < step->count; i += 2) {
		int resource = (int)to_number(step->arg[i].text);
		uint64_t most = to_number(step->arg[i + 1].text);
		struct rlimit limit;

		if (getrlimit(resource, &limit) < 0)
			return -1;
		limit.rlim_max = most < limit.rlim_max ? most : limit.rlim_max;
		limit.rlim_cur = most < limit.rlim_cur ? most : limit.rlim_cur;
		if (setrlimit(resource, &limit) < 0)
			return -1;
	}
	return 0;
}

/* As many as a kernel may have at the most. */
#define CPUS 8192u

/* As many processors as asked for, from the one that this runs on: neighbours begin elsewhere. */
int step_affinity(const struct step *step)
{
	uint64_t may[CPUS / 64] = {0}, use[CPUS / 64] = {0};
	unsigned first = 0;
	uint64_t left = step->arg[0].number;

	if (syscall(__NR_sched_getaffinity, 0, sizeof may, may) < 0)
		return -1;
	syscall(__NR_getcpu, &first, NULL, NULL);
	for (unsigned i = 0; i < CPUS && left > 0; i++) {
		unsigned cpu = (i + first) % CPUS;
		uint64_t bit = may[cpu / 64] & 1ull << cpu % 64;

		use[cpu / 64] |= bit;
		left -= bit != 0;
	}
	return (int)syscall(__NR_sched_setaffinity, 0, sizeof use, use);
}

/*
 * Nothing that is executed from here on can gain a capability but those to KEEP: not by being root
 * (securebits), not from a file (bounding set), not from its parent (ambient set). Where some are
 * kept, it is by being root that they are. Before the ids change, for this needs CAP_SETPCAP.
 * PR_SET_KEEPCAPS stays: it keeps what there is and gains nothing, and ping(8) ends if it is refused.
 */
int step_bounding_set(const struct step *step)
{
	uint64_t keep = step->arg[0].number;
	unsigned long bits = SECBIT_NOROOT_LOCKED | SECBIT_NO_SETUID_FIXUP_LOCKED |
			     SECBIT_NO_CAP_AMBIENT_RAISE | SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED;

	if (prctl(PR_SET_SECUREBITS, keep == 0 ? bits | SECBIT_NOROOT : bits, 0) < 0)
		return -1;
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0) < 0)
		return -1;
	/* EINVAL: the kernel knows no more. Of the first it knows surely. */
	for (unsigned long capability = 0;; capability++) {
		if (capability < 64 && (keep >> capability & 1) != 0)
			continue;
		if (prctl(PR_CAPBSET_DROP, capability, 0) < 0)
			return errno == EINVAL && capability > 0 ? 0 : -1;
	}
}

/* Another identity than the one that set up, where the id map holds more than one. */
int step_credentials(const struct step *step)
{
	uid_t uid = (uid_t)step->arg[0].number;
	gid_t gid = (gid_t)step->arg[1].number;

	return drop_groups() < 0 || setresgid(gid) < 0 ? -1 : setresuid(uid);
}

int step_capabilities(const struct step *step)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	uint32_t low = (uint32_t)step->arg[0].number, high = (uint32_t)(step->arg[0].number >> 32);
	struct __user_cap_data_struct kept[2] = {
		{.effective = low, .permitted = low},
		{.effective = high, .permitted = high},
	};

	return (int)syscall(__NR_capset, &header, kept);
}

int step_no_new_privs(const struct step *step)
{
	(void)step;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0);
}
