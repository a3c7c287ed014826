"""`python -m sparks.cli`."""

import sys

from sparks.cli import main

sys.exit(main())
