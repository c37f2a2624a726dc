"""`python -m mlm.train RUN/config.yaml`: trains as one rank, which a launcher has started."""

import os
import sys

from mlm.training.rank import main

if __name__ == "__main__":
    code = main(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # leaving groups in order can hang on ranks that are gone
