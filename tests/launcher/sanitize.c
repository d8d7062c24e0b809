/* Options of the sanitizers, for a program that is started without an environment. */
const char *__asan_default_options(void);
const char *__ubsan_default_options(void);

/* Init and the launcher end by _exit with what they allocated: that is no leak. */
const char *__asan_default_options(void)
{
	return "detect_leaks=0:exitcode=99";
}

const char *__ubsan_default_options(void)
{
	return "print_stacktrace=1:exitcode=99";
}
