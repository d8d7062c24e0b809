"""``python -m capsule`` is ``capsule``."""

import sys

from .cli import main

sys.exit(main())
