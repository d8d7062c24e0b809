"""``python -m capsule`` is ``capsule``."""

from capsule.cli.main import entry

entry()
