"""`python -m runner trust add PATTERN | list | remove PATTERN`: trust names in this project for good.

They are kept in your own configuration directory under the path of the working directory, never inside the project.
A pattern means what it means after `--trust`: names such as `timm.*`, or a directory of code.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import JSON, Verb, choose_subject
from runner.core import user_trust
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

VERBS = (
    Verb(
        "trust add",
        words=("PATTERN",),
        options=(JSON,),
        takes_overrides=False,
        more="[PATTERN…]",
        about="Trust names, or a directory of code, in this project from now on. It is kept outside the project.",
        examples=(("trust add 'timm.*'", "in place of --trust on every line"),),
    ),
    Verb(
        "trust list",
        options=(JSON,),
        takes_overrides=False,
        about="List what is trusted in this project.",
        examples=(("trust list", "one pattern a line"),),
    ),
    Verb(
        "trust remove",
        words=("PATTERN",),
        options=(JSON,),
        takes_overrides=False,
        more="[PATTERN…]",
        about="Trust them no longer.",
        examples=(("trust remove 'timm.*'", "as it was added"),),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Add, list or remove patterns; print those that this project has then.

    Raises:
        ConfigError: a pattern cannot be kept, or is not there to be removed.
    """
    subject = choose_subject("trust", argv, ["add", "list", "remove"])
    verb = VERBS[["add", "list", "remove"].index(subject)]
    given = verb.parse(argv[1:])
    patterns = [*given.words, *given.overrides]
    if subject == "add":
        kept = user_trust.add_trusted([_check_pattern(pattern) for pattern in patterns])
    elif subject == "remove":
        known = user_trust.read_trusted()
        kept = user_trust.remove_trusted([one if one in known else _name_folder(one) for one in patterns])
    else:
        kept = user_trust.read_trusted()
    if given.as_json:
        print_json({"project": str(Path.cwd().resolve()), "trusted": kept, "file": str(user_trust.find_trust_file())})
        return EXIT_DONE
    print(make_printable("\n".join(kept) or "Nothing is trusted in this project beyond its own code."))
    return EXIT_DONE


def _check_pattern(pattern: str) -> str:
    """Return a pattern as it is kept: a directory by its full path.

    Raises:
        ConfigError: it would trust the commands of files, or is a directory that is not there.
    """
    from runner.config.check.commands import TRUST

    if pattern == TRUST:
        rule = "cannot be kept: a command that a file gives is trusted for one command line"
        raise ConfigError([Mistake("trust add", rule, pattern, remedy=f"--trust {TRUST}", kind="untrusted")])
    if (folder := _name_folder(pattern)) != pattern and not Path(folder).is_dir():
        raise ConfigError([Mistake("trust add", "is no directory", pattern, kind="file")])
    return folder


def _name_folder(pattern: str) -> str:
    is_folder = os.sep in pattern or pattern in (os.curdir, os.pardir)
    return f"{Path(pattern).resolve()}{os.sep}" if is_folder else pattern
