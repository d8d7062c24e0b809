/*
 * Between execve(2) and main, and memory. A build with a C library, for the sanitizers, has its start and
 * its memory from there.
 */
#include "sys.h"

int sys_errno;

#if __STDC_HOSTED__

void *calloc(size_t count, size_t size);
void free(void *memory);

void *allocate(size_t size)
{
	void *memory = calloc(1, size);

	errno = memory == NULL ? ENOMEM : errno;
	return memory;
}

void release(void *memory, size_t size)
{
	(void)size;
	free(memory);
}

#else

#include <linux/auxvec.h>
#include <linux/elf.h>
#include <linux/mman.h>

int main(void);
_Noreturn void begin(uintptr_t *stack);
_Noreturn void __stack_chk_fail(void);

/* What -fstack-protector looks for at the end of a function. */
uintptr_t __stack_chk_guard;

_Noreturn void __stack_chk_fail(void)
{
	for (;;)
		__builtin_trap();
}

/* The stack: how many arguments, they, NULL, the environment, NULL, pairs of getauxval(3). */
__asm__(".text\n"
	".globl _start\n"
	"_start:\n"
#if defined(__x86_64__)
	"	xorl %ebp, %ebp\n"
	"	movq %rsp, %rdi\n"
	"	andq $-16, %rsp\n"
	"	call begin\n");
#define RELATIVE 8 /* R_X86_64_RELATIVE */
#else
	"	mov x29, #0\n"
	"	mov x30, #0\n"
	"	mov x0, sp\n"
	"	and sp, x0, #-16\n"
	"	b begin\n");
#define RELATIVE 1027 /* R_AARCH64_RELATIVE */
#endif

extern const char __ehdr_start[] __attribute__((visibility("hidden")));

static const uintptr_t *pairs;

unsigned long getauxval(unsigned long type)
{
	for (const uintptr_t *pair = pairs; pair[0] != AT_NULL; pair += 2)
		if (pair[0] == type)
			return pair[1];
	return 0;
}

/* Add where we were loaded to each pointer in the data. The linker makes no other relocation. */
static inline __attribute__((always_inline)) void relocate(uintptr_t base, const Elf64_Dyn *dynamic)
{
	uintptr_t table = 0, size = 0;

	for (; dynamic->d_tag != DT_NULL; dynamic++) {
		table = dynamic->d_tag == DT_RELA ? dynamic->d_un.d_ptr : table;
		size = dynamic->d_tag == DT_RELASZ ? dynamic->d_un.d_val : size;
	}
	for (uintptr_t at = 0; at < size; at += sizeof(Elf64_Rela)) {
		const Elf64_Rela *one = (const void *)(base + table + at);

		if (one->r_info != RELATIVE)
			__builtin_trap();
		*(uintptr_t *)(base + one->r_offset) = base + (uintptr_t)one->r_addend;
	}
}

/* From here on what holds pointers is constant. */
static void make_constant(uintptr_t base, const Elf64_Phdr *part)
{
	uintptr_t page = getauxval(AT_PAGESZ);
	uintptr_t from = (base + part->p_vaddr) & -page,
		  to = (base + part->p_vaddr + part->p_memsz) & -page;

	if (syscall(__NR_mprotect, from, to - from, PROT_READ) < 0)
		__builtin_trap();
}

/* Has no end, so what it does to the stack protector's guard does not concern it. */
_Noreturn void begin(uintptr_t *stack)
{
	const uintptr_t base = (uintptr_t)__ehdr_start;
	const Elf64_Ehdr *header = (const void *)base;
	const Elf64_Phdr *part = (const void *)(base + header->e_phoff);
	const Elf64_Phdr *constant = NULL;
	const uintptr_t *at = stack + stack[0] + 2;

	for (size_t i = 0; i < header->e_phnum; i++) {
		if (part[i].p_type == PT_DYNAMIC)
			relocate(base, (const void *)(base + part[i].p_vaddr));
		if (part[i].p_type == PT_GNU_RELRO)
			constant = &part[i];
	}
	while (*at != 0)
		at++;
	pairs = at + 1;
	/* Its first byte in memory stays 0, which ends a text. */
	__stack_chk_guard = *(const uintptr_t *)getauxval(AT_RANDOM) << 8;
	if (constant != NULL)
		make_constant(base, constant);
	_exit(main());
}

void *allocate(size_t size)
{
	long got = syscall(__NR_mmap, NULL, size, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1);

	return got == -1 ? NULL : (void *)got;
}

void release(void *memory, size_t size)
{
	syscall(__NR_munmap, memory, size);
}

#endif
