"""A service in a simulated world that waits for a locked journal for moments only: as `tests.service.process`."""

from __future__ import annotations

import sys
from typing import Any, cast

from lvmigrate.service import ledger, server
from tests.service import process

if __name__ == "__main__":
    cast("Any", ledger)._BUSY_S = 0.2
    cast("Any", server)._JOURNAL_AGAIN_S = 0.1
    sys.exit(process.main())
