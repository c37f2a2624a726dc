"""`python -m mlm.train RUN/config.yaml`: trains as one rank, which a launcher has started.

Exits with the code of the run's outcome, and with 0 also where it stopped as asked: torchrun takes
any other for a failure, and the launcher reads `outcome.json`.
"""

import os
import sys
from contextlib import nullcontext

from mlm.console import plain_console
from mlm.errors import REQUEUE
from mlm.health.stopping import listen
from mlm.output import lasting_output
from mlm.tracking.progress import stage

if __name__ == "__main__":
    listen()  # before the seconds that the imports take
    with lasting_output():
        loading = stage(plain_console(sys.stdout), "Loading PyTorch and DeepSpeed")
        with loading if os.environ.get("RANK", "0") == "0" else nullcontext():
            from mlm.training.rank import main  # takes seconds
        code = main(sys.argv[1])
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0 if code == REQUEUE else code)  # leaving groups in order can hang on lost ranks
