"""`python -m benchmarks`: measure what the README claims."""

from __future__ import annotations

import sys

from benchmarks.publish import main

sys.exit(main())
