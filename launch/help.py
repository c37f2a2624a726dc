"""The text of `mlm VERB --help`: what it does, its choices, settings and examples."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from launch import ROOT
from mlm.config import value_of
from mlm.config.table import shown, values
from mlm.setting import settings

GROUPS = ("model", "experiment")  # folders of conf/; a choice is a file
WIDTH = 36  # of SETTING=VALUE


def help_text(schema: type, choices: Mapping[str, Iterable[str]], composed: DictConfig) -> str:
    """The help of a command, with the values that are composed; `$` is doubled, for Hydra.

    choices: of settings that are names from a table, by what stands before the `=`
    """
    texts = composed.hydra.help
    found = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(found, dict)
    found = {str(name): value for name, value in found.items()}
    lines = [texts.header]
    if choices:
        groups = {group: files(group) for group in GROUPS}
        rows = [f"  {name}={'|'.join(names)}" for name, names in {**groups, **choices}.items()]
        lines += ["Choices:", *rows, ""]
    lines += [
        "Settings, with the values of this command (??? must be given)  [and what is possible]:"
    ]
    section = ""
    for row in settings(schema):
        if row.name.rpartition(".")[0] != section:
            section = row.name.rpartition(".")[0]
            lines.append("")
        given = f"{row.name}={shown(value_of(found, row.name))}"
        lines.append(f"  {given:<{WIDTH}}  {row.help}  [{values(row.type, row.bounds)}]")
    lines += ["", "Examples:", *(f"  {line}" for line in texts.footer.splitlines())]
    return "\n".join(lines).replace("$", "$$")


def files(group: str, config_folder: Path | None = None) -> list[str]:
    """The choices of a group: ours, and those in a folder of the user's own."""
    folders = [ROOT / "conf", *([config_folder] if config_folder else [])]
    return sorted({path.stem for each in folders for path in (each / group).glob("*.yaml")})
