"""``python -m dpa3sim`` is the command ``dpa3sim``."""

import sys

from dpa3sim.cli.main import main

sys.exit(main())
