"""Editors' settings: which schema is for which file, in the settings files of a project."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.config.editor.json_schema import PRESET, ROOT
from runner.config.editor.project import is_global, list_config_files
from runner.core import jsonc
from runner.core.errors import ConfigError, Mistake
from runner.core.files import write_text
from runner.core.safe_io import read_bytes

FOLDER = ".yaml-schemas"  # of the schemas, in the project's own folder

# Settings files of a project, and where in them the YAML language server has its schemas. The first is always written;
# the others where the project has the editor's folder.
_KEY = "yaml.schemas"
EDITORS = (
    (Path(".vscode/settings.json"), (_KEY,)),
    (Path(".vim/coc-settings.json"), (_KEY,)),
    (Path(".zed/settings.json"), ("lsp", "yaml-language-server", "settings", "yaml", "schemas")),
)


@dataclass(frozen=True)
class WrittenFile:
    """File that was written: its path, and whether that changed it."""

    path: Path
    changed: bool


def map_schemas(groups: Sequence[str]) -> dict[str, str | list[str]]:
    """Map each schema, relative to the project, to the patterns of the config files that it is for."""
    presets = [file.as_posix() for file in list_config_files(Path("conf")) if _is_preset(file)]
    found: dict[str, str | list[str]] = {}
    for group in groups:
        others = [f"!{file}" for file in presets if file.startswith(f"conf/{group}/")]
        others += [f"!conf/{inner}/**/*.yaml" for inner in groups if inner.startswith(f"{group}/")]
        own = f"conf/{group}/**/*.yaml"
        found[f"./{FOLDER}/{group.replace('/', '.')}.json"] = [own, *others] if others else own
    found[f"./{FOLDER}/{ROOT}.json"] = ["conf/config.yaml", "conf/experiment/**/*.yaml"]
    found[f"./{FOLDER}/{PRESET}.json"] = ["conf/debug/**/*.yaml", *presets]
    return found


def _is_preset(file: Path) -> bool:
    parts = file.parts
    return len(parts) > 2 and parts[1] not in ("experiment", "debug", "hydra") and is_global(file)


def write_schemas(files: Mapping[str, dict[str, Any]], groups: Sequence[str]) -> list[WrittenFile]:
    """Write the schemas, and enter them in the editors' settings; what stands there stays.

    Raises:
        ConfigError: a settings file cannot be read, or is no JSON: nothing is written.
    """
    mapped = map_schemas(groups)
    texts: dict[Path, str] = {}
    mistakes: list[Mistake] = []
    for path, key in EDITORS:
        if path == EDITORS[0][0] or path.parent.is_dir():
            try:
                old = read_bytes(path).decode() if os.path.lexists(path) else ""
                texts[path] = jsonc.set_members(old, key, mapped, stale=f"./{FOLDER}/")
            except (OSError, ValueError) as error:
                remedy = f"mend it, or enter `{'.'.join(key)}` yourself: python -m runner schema --json"
                mistakes.append(Mistake(str(path), f"cannot be changed: {error}", remedy=remedy, kind="file"))
    if mistakes:
        raise ConfigError(mistakes)
    for name, made in files.items():
        texts[Path(FOLDER) / name] = json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n"
    return [_write(path, text) for path, text in texts.items()]


def _write(path: Path, text: str) -> WrittenFile:
    if path.exists() and path.read_bytes() == text.encode():
        return WrittenFile(path, changed=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return WrittenFile(path, changed=True)
