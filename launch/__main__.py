"""`python -m launch train ...`, and the same under torchrun."""

import sys

from launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
