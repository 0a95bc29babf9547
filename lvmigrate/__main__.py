"""``python -m lvmigrate`` is the command."""

import sys

from lvmigrate.cli import main

sys.exit(main())
