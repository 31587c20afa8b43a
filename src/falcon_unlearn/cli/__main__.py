"""Run the command line as `python -m falcon_unlearn.cli`."""

from __future__ import annotations

import sys

from falcon_unlearn.cli.main import main

sys.exit(main())
