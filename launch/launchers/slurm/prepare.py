"""`python -m launch.launchers.slurm.prepare RUN`: the first step of a job whose run has a corpus.

It makes tokenizer and shards, as `launch=local` does before it starts ranks, and writes where they
are into the run's `config.yaml`.
"""

import sys
from pathlib import Path

import yaml

import mlm.config
from launch import run_folder
from launch.messages import show_messages
from launch.ready import with_data
from mlm.config import TrainConfig, load
from mlm.console import KeepingConsole
from mlm.errors import UserError
from mlm.output import lasting_output
from mlm.plugins import import_plugins


def prepare(folder: Path) -> None:
    """Prepares the data of the run in `folder`; raises `UserError`."""
    config = load(TrainConfig, yaml.safe_load((folder / run_folder.CONFIG).read_text("utf-8")))
    import_plugins(config.plugins)
    console = KeepingConsole()
    config, _ = with_data(config, mlm.config.layout(config), [], console)
    with run_folder.held(folder):
        run_folder.write_config(folder, config)


def main(folder: Path) -> int:
    show_messages()
    with lasting_output():
        try:
            prepare(folder)
        except UserError as error:
            run_folder.refuse(folder, error)
            print(f"mlm: {error}", file=sys.stderr)
            return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
