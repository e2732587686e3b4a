"""`python -m runner schema [GROUP] [--write] [--json]`: JSON Schemas of the config files, for editors.

With a group, that of its files (`conf/GROUP/*.yaml`); without one, that of a whole config (`conf/config.yaml`,
experiments). `--write` puts all of them into the project and enters them in the editors' settings.
"""

from collections.abc import Sequence

from runner.cli.options import JSON, TRUST, Option, Verb
from runner.config.suggestions import find_nearest, format_suggestion
from runner.core.errors import ConfigError, Mistake
from runner.core.escape import make_printable
from runner.core.event_stream import print_json
from runner.core.exit_status import EXIT_DONE

_WRITE = Option("--write", "write all schemas into the project, and enter them in the editors' settings")
VERBS = (
    Verb(
        "schema",
        options=(_WRITE, JSON, TRUST),
        takes_overrides=False,
        more="[GROUP]",
        about="Print the JSON Schema of a group's files, or of a whole config; or put all of them where editors look.",
        examples=(
            ("schema model", "of the files in conf/model/"),
            ("schema --write", "for VS Code and other YAML servers: mistakes and help while you type"),
        ),
    ),
)


def main(argv: Sequence[str]) -> int:
    """Print the JSON Schema of a group or of a whole config; or write all of them.

    Raises:
        ConfigError: there is no such group, or a settings file cannot be changed.
    """
    given = VERBS[0].parse(argv)
    words = given.overrides
    if len(words) > 1 or (words and _WRITE.name in given):
        rule = "takes one group" if _WRITE.name not in given else "with --write is for all groups"
        raise ConfigError([Mistake("schema", rule, " ".join(words), remedy=VERBS[0].usage)])
    from runner.config.editor.json_schema import PRESET, ROOT, find_group_field, format_schema, list_groups
    from runner.config.editor.project import make_builder
    from runner.config.editor.settings import map_schemas, write_schemas

    known = [*list_groups(), "experiment", "debug", ROOT, PRESET]
    group = words[0].replace(".", "/") if words else ROOT
    if group not in known and ("/" not in group or find_group_field(group) is None):
        near = find_nearest(group, known)
        remedy = format_suggestion(near) or f"one of {', '.join(known)}"
        raise ConfigError([Mistake("schema", "is no group", words[0], "", remedy, near, "unknown-option")])
    builder = make_builder(given.trust)
    if _WRITE.name not in given:
        made = builder.build(group)
        if given.as_json:
            print_json(made)
        else:
            print(format_schema(made))
        return EXIT_DONE
    written = write_schemas(builder.build_files(), builder.list_groups())
    if given.as_json:
        files = [{"path": one.path.as_posix(), "changed": one.changed} for one in written]
        print_json({"files": files, "schemas": map_schemas(builder.list_groups())})
        return EXIT_DONE
    for one in written:
        if one.changed:
            print(make_printable(f"wrote {one.path}"))
    changed = sum(one.changed for one in written)
    print(f"{len(written)} files, {changed} of them changed: open a file of conf/ in your editor")
    return EXIT_DONE
