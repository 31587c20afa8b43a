"""Run the command line as `python -m falcon_unlearn`, which is also what torchrun starts."""

from __future__ import annotations

import sys

from falcon_unlearn.cli.main import main

sys.exit(main())
