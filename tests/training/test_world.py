"""What a rank prints, and what the ranks decide together."""

import os
import sys

import pytest
import torch

from mlm.batch.micro_batch import IGNORED, MicroBatch
from mlm.batch.visibility import Visibility
from mlm.errors import DataError, UserError
from mlm.training.world import agree, log_to_file, raise_together
from parallel.groups import make_grid
from parallel.layout import Layout
from tests.ranks import run_ranks


def printed(run, rank: int) -> tuple[str, str]:
    """What a process that logs as `rank` leaves in its log and on its standard output."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writer, 1)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        log_to_file(run, rank)
        print("printed", flush=True)
        os.write(1, b"out of C\n")
        os.write(2, b"error of C\n")
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return (run / "logs" / f"rank-{rank:05d}.log").read_text(), pipe.read()


def test_log_to_file_leaves_the_output_of_rank_0_on_the_screen(tmp_path):
    assert printed(tmp_path, 0) == ("error of C\n", "printed\nout of C\n")
    assert printed(tmp_path, 3) == ("printed\nout of C\nerror of C\n", "")


def micro_batch(masked: int, digest: int = 0) -> MicroBatch:
    targets = torch.full((2, 8), IGNORED)
    targets.view(-1)[:masked] = 7
    return MicroBatch(targets, Visibility((2, 8, 8)), targets, targets, targets, digest=digest)


def tokens(batches: list[MicroBatch]) -> int:
    return sum(batch.masked_tokens for batch in batches)


def agreements(layout: Layout) -> list:
    grid, cpu = make_grid(layout), torch.device("cpu")
    rank_batches = [micro_batch(4 + grid.dp_rank, 2**62), micro_batch(6, 2**62 + grid.dp_rank)]
    found: list = [agree(grid, cpu, rank_batches, tokens(rank_batches), grid.rank == 2, None)]
    one_batch = [micro_batch(5, grid.dp_rank - 3)]
    found.append(agree(grid, cpu, one_batch, tokens(one_batch), False, None))
    error = DataError(f"of {grid.rank}") if grid.rank in (1, 3) else None
    with pytest.raises(DataError) as raised:
        agree(grid, cpu, [], 0, False, error)
    found.append(str(raised.value))
    raise_together(None)
    with pytest.raises(UserError) as raised:
        raise_together(UserError("of the last") if grid.rank == 3 else None)
    found.append((type(raised.value), str(raised.value)))
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("layout", [Layout(tp=2, dp=2), Layout(pp=2, dp=2)], ids=str)
def test_agree_shares_tokens_stops_and_errors(layout):
    """The ranks of one data rank count the same tokens; a stop or an error of one rank is
    everyone's."""
    first, *others = run_ranks(4, agreements, layout)
    assert (first[0].normaliser, first[0].stop) == (21, True)
    assert first[0].digest == 1  # modulo 2**64
    assert (first[1].normaliser, first[1].digest, first[1].stop) == (10, -5, False)
    assert first[2:] == ["of 1", (UserError, "of the last")]
    assert others == [first] * 3
