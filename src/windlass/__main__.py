"""``python -m windlass`` is the ``windlass`` command."""

import sys

from windlass.cli import main

sys.exit(main())
