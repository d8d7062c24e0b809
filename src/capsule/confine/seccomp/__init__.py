"""The policy for system calls, and its way into the kernel's filter machine.

General layout, from top to bottom; nothing imports upward. A run with a built-in profile imports
the filters and the specification alone:

    filters             specification -> the program that a run carries
    denials             what was refused, in words
    emit                rules -> program
    resolve             specification -> rules
    oci, compare        files of Docker's format as rules
    table, groups       the policy itself; groups of calls
    numbers             names and numbers of system calls
    rules               what a rule is
    spec                what is asked for
"""
