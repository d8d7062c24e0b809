"""``python -m capsule`` is ``capsule``."""

from .cli import entry

entry()
