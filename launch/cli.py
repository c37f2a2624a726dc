"""The command line: `mlm VERB [POSITIONAL ...] [SETTING=VALUE ...]`.

Everything that costs time to import is imported by the verb that needs it.
"""

import os
import re
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from launch.shadowing import shadowed
from launch.srun import adopt
from launch.verb import Composed, Verb
from launch.verbs import VERBS

OVERRIDE = re.compile(r"~|\+{0,2}([A-Za-z_][\w.@:]*|hydra/[\w/@.]+)=")
RANK = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of a process that torchrun started
COMPLETION = ("-sc", "--shell-completion")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (default: the process's own) and returns its exit code."""
    if sentence := shadowed():
        print(f"mlm: {sentence}", file=sys.stderr)
        return 2
    from mlm.output import lasting_output

    with lasting_output():
        return _main(list(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    from mlm.errors import UserError

    try:
        _run(arguments)
        sys.stdout.flush()
    except UserError as error:
        if str(error):  # empty on the ranks that leave it to rank 0
            print(f"mlm: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt as error:
        print(f"mlm: {str(error) or 'interrupted'}", file=sys.stderr)
        return getattr(error, "code", 130)
    return 0


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments, which end at the first `key=` or flag, and the rest.

    In the rest overrides come before flags, since Hydra's parser wants them together.
    """
    ends = [i for i, text in enumerate(arguments) if OVERRIDE.match(text) or text[:1] == "-"]
    end = ends[0] if ends else len(arguments)
    rest = arguments[end:]
    overrides = [text for text in rest if OVERRIDE.match(text)]
    return list(arguments[:end]), overrides + [text for text in rest if not OVERRIDE.match(text)]


def _run(arguments: list[str]) -> None:
    if arguments and arguments[0] in COMPLETION:
        _completion(arguments)
    elif not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview())
    elif arguments[0] == "--version":
        import mlm

        print(f"polymlm {mlm.__version__}")
    elif arguments[0] in VERBS:
        _run_verb(arguments[0], arguments[1:])
    else:
        _unknown_verb(arguments[0])


def _run_verb(name: str, arguments: list[str]) -> None:
    from launch.compose import compose
    from launch.messages import show_messages

    show_messages()
    verb = VERBS[name]
    values, rest = split(arguments)
    given = _named(name, verb, values)

    def composing(run: Callable[[Composed], float | None]) -> None:
        compose(name, verb.schema, rest, given, run, verb.choices)

    if name == "train":
        adopt()
    if name == "train" and all(variable in os.environ for variable in RANK):
        from launch.launchers.torchrun import train_as_rank

        train_as_rank(composing, rest)
    else:
        composing(verb.run)


def _named(name: str, verb: Verb, values: list[str]) -> dict[str, Any]:
    """Positional values under the names of the settings that they give."""
    from mlm.errors import UserError

    if len(values) > len(verb.positional) and not verb.many:
        extra = values[len(verb.positional)]
        raise UserError(
            f"{extra!r} is not an argument of mlm {name}, which takes "
            f"{' and '.join(verb.positional) or 'settings only'}; write settings as key=value "
            f"(`mlm {name} --help` lists them)"
        )
    given: dict[str, Any] = dict(zip(verb.positional, values, strict=False))
    if verb.many and len(values) >= len(verb.positional):
        given[verb.positional[-1]] = values[len(verb.positional) - 1 :]
    return given


def _unknown_verb(name: str) -> None:
    from mlm.errors import UserError

    near = get_close_matches(name, VERBS, 1, 0.4)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(VERBS)}"
    raise UserError(f"{name!r} is not a command of mlm; {hint}")


def _completion(arguments: list[str]) -> None:
    """Answers a shell, which asks for completions of COMP_LINE or for the script that asks so."""
    asked = next((text for text in arguments if text.startswith("query=")), None)
    if asked is None:
        _run_verb("train", arguments)  # Hydra's script, the same for every verb
    else:
        from launch.completion import completed

        words = completed(os.environ.get("COMP_LINE", ""))
        print(*words, sep="\n" if asked == "query=fish" else " ")


def _overview() -> str:
    rows = [f"  {name:<11} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "mlm COMMAND [SETTING=VALUE ...]: pretraining of multilingual masked language models.",
            "",
            *rows,
            "",
            "`mlm COMMAND --help` shows the settings of a command, and examples.",
        ]
    )
