"""What a user can get wrong, and the exit code that each kind of it ends with.

A message is one sentence: the value, the rule, the remedy. The codes are those of `outcome.json`:
0 done, 2 configuration, 75 saved (start the same command again to resume), 76 data, 77 a loss or
gradient out of range, 1 anything else.
"""

DONE, FAILED, CONFIG, REQUEUE, DATA, NUMBERS = 0, 1, 2, 75, 76, 77


class UserError(ValueError):
    """A mistake in the configuration, the command line or the machine's set-up.

    A ValueError, since the classes of `mlm.family` are used from Python, too.
    """

    code = CONFIG


class DataError(UserError):
    """Text, tokenizer or shards that cannot be used as they are."""

    code = DATA


class BadShard(DataError):
    """A shard that is not as the index has it. offset: of the first byte that is known to be bad"""

    def __init__(self, shard: str, offset: int, sentence: str) -> None:
        super().__init__(sentence)
        self.shard, self.offset = shard, offset

    def __reduce__(self) -> tuple:  # other ranks get it by pickle
        return BadShard, (self.shard, self.offset, str(self))


class NumbersError(UserError):
    """A loss or a gradient that is not finite, or far above those before it."""

    code = NUMBERS


class DriftError(UserError):
    """Replicas that differ between ranks: a fault of a machine, reported like a mistake."""

    code = FAILED


class StopRequested(UserError):
    """The run was asked to stop; its state is saved, and the same command resumes it."""

    code = REQUEUE
