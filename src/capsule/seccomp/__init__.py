"""The policy for system calls, and its way into the kernel's filter machine. No run uses it yet.

General layout, from top to bottom; nothing imports upward. A run whose filter is in the cache imports
the cache and the specification alone:

    cache               specification -> compiled filter, kept
    compile, library    rules -> programs, through libseccomp
    resolve             specification -> rules
    oci, compare        files of Docker's format as rules
    table, groups       the policy itself; groups of calls
    numbers             names and numbers of system calls
    rules               what a rule is
    spec                what is asked for
"""

from .cache import Compiled, load, rules
from .spec import Spec

__all__ = ["Compiled", "Spec", "load", "rules"]
