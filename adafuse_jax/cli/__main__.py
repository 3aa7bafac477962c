"""`python -m adafuse_jax.cli`: the command without its script."""

import sys

from adafuse_jax.cli import main

sys.exit(main())
