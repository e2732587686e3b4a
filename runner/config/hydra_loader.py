"""Hydra's config loader; notes unknown groups, unknown options and broken overrides."""

import itertools
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, IConfigRepository
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runner.config import arguments, document, recipes
from runner.config.composed import Composed
from runner.config.document import Document
from runner.config.hydra_repository import CONFIG_NAME, Repository, find_defaults_line, make_search_path
from runner.config.interpolation import fill_in_referenced_defaults
from runner.config.origins import Layers, format_argument, make_relative
from runner.config.recipes import SupersededGroup
from runner.config.suggestions import find_nearest, format_suggestion, translate_name
from runner.core.errors import ConfigError, Kind, Mistake
from runner.core.paths import find_our_conf

_OURS_ONLY = "may be set by the runner's own files and the command line only"


# All that a file may set: texts of a sweep, which we enumerate ourselves, and of a help page that nobody prints.
_HYDRA_FROM_FILES = {"hydra.sweeper.params", "hydra.help"}


class ConfigLoader(ConfigLoaderImpl):
    """Hydra's config loader: raises `ConfigError` when Hydra calls it; `collect` returns the mistakes."""

    repository: Repository

    def __init__(self, cwd: Path) -> None:
        self.cwd = cwd
        self.config_search_path = make_search_path(cwd)
        self.repository = Repository(self.config_search_path)
        self._parser = OverridesParser.create()
        self._mistakes: list[Mistake] = []
        self._defaults: list[ResultDefault] = []
        self._superseded: dict[str, dict[str, SupersededGroup]] = {}
        self._parsed: list[Override] = []
        self._left_out: set[str] = set()
        self._unknown: set[str] = set()
        self._mode = RunMode.RUN
        self._of_the_runner = False  # Hydra composes for its own launchers, whose folders are said to it so

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a config for Hydra. Raises ConfigError."""
        if config_name is None:  # `--hydra-help` composes Hydra's own node alone
            return super().load_configuration(None, overrides, run_mode, from_shell, validate_sweep_overrides)
        config = self._compose(overrides, run_mode)
        if self._mistakes:
            raise ConfigError(self._mistakes)
        return config

    def collect(self, overrides: list[str], run_mode: RunMode) -> Composed:
        """Compose a run or a sweep; the result holds the mistakes."""
        self._of_the_runner = True
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Support for .yml")  # said as a mistake
            config = self._compose(overrides, run_mode)
            hydra = config.pop("hydra")
            fill_in_referenced_defaults(config)
            choices = {str(group): option for group, option in hydra.runtime.choices.items()}
            layers = Layers.of(self.repository, self._defaults, self._parsed, self.cwd, self._superseded)
        return Composed(config, hydra, choices, overrides, layers, self._mistakes, self._unknown)

    def _compose(self, overrides: list[str], run_mode: RunMode) -> DictConfig:
        self._mode = run_mode
        self._mistakes, self._left_out, self._unknown = [], set(), set()
        self.repository.mistakes, self.repository.instead, self.repository.cut = [], {}, set()
        self.repository.read.clear()
        while True:
            try:
                config = super().load_configuration(CONFIG_NAME, overrides, run_mode, validate_sweep_overrides=False)
                break
            except MissingConfigException as error:
                self._replace_option(error)
            except RecursionError:
                self._cut_circle()
            except OSError as error:
                rule = f"cannot be read: {error.strerror or error}"
                remedy = "make it readable, or start elsewhere"
                raise ConfigError(
                    [*self._mistakes, Mistake(str(error.filename or "conf"), rule, remedy=remedy, kind="file")]
                ) from error
            except (HydraException, OmegaConfBaseException, ValueError, IndexError, TypeError, AssertionError) as error:
                self._leave_out(overrides, error)
        read = [loaded.mistake for loaded in self.repository.read.values() if loaded.mistake]
        for default in self._defaults:
            path = self.repository.file(default.config_path or "")
            unread = path in self.repository.read and self.repository.read[path].mistake and default.package
            self._unknown |= {str(default.package)} if unread else set()
            twin = self.repository.yml(default.config_path or "")
            if twin is not None and path is not None:
                own = f"rename it to {twin.stem}.yaml"
                beside = path != twin and path.parent == twin.parent
                remedy = f"remove it, or rename it to {twin.stem}_other.yaml" if beside else own
                rule = "ends in `.yml`" if path == twin else f"is not read, but {path}"
                self._mistakes.append(
                    Mistake(str(twin), f"{rule}: files end in `.yaml`", remedy=remedy, kind="no-effect")
                )
        self._mistakes = [self._nearest_to_delete(mistake, config) for mistake in self._mistakes]
        self._mistakes = [make_relative(m, self.cwd) for m in (*self._mistakes, *read, *self.repository.mistakes)]
        OmegaConf.set_struct(config, False)
        return config

    def _parse_overrides_and_create_caching_repo(
        self, config_name: str | None, overrides: list[str]
    ) -> tuple[list[Override], CachingConfigRepository]:
        """Parse every readable override, plain values forced in; the runner's own check judges the keys.

        `hydra.searchpath` is taken from the command line alone: a package that it names is imported.
        """
        _, repository = super()._parse_overrides_and_create_caching_repo(None, [])
        parsed = []
        self._left_out |= self._apart(overrides)
        for text in overrides:
            override = self._parse(text) if text not in self._left_out else None
            if override is not None:
                parsed.append(self._forced(override, repository))
        self._parsed = parsed
        searched = [o for o in parsed if o.get_key_element() == "hydra.searchpath"]
        if searched:
            self._process_config_searchpath(None, searched, repository)
        return parsed, repository

    def _nearest_to_delete(self, mistake: Mistake, config: DictConfig) -> Mistake:
        """Add the nearest existing key to a mistake about deleting (`~key`) one that does not exist."""
        if not mistake.where.startswith("argument `~") or mistake.remedy:
            return mistake
        parent, _, last = mistake.key.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        right = find_nearest(last, map(str, node)) if isinstance(node, DictConfig) else ""
        right = f"{parent}.{right}".lstrip(".") if right else ""
        return replace(mistake, remedy=format_suggestion(right and f"~{right}"), suggestion=right)

    def parse(self, text: str) -> Override:
        """Parse one argument in Hydra's grammar. Raises HydraException."""
        override = self._parser.parse_overrides([text])[0]
        override.config_loader = self
        return override

    def _parse(self, text: str) -> Override | None:
        key, _, value = text.partition("=")
        try:
            override = self.parse(text)
        except HydraException as error:
            mistake = arguments.diagnose_unreadable(text, error, self.parse)
        else:
            if instead := self._hydras_without_effect(override):
                mistake = Mistake(
                    override.key_or_group,
                    arguments.NO_EFFECT,
                    where=format_argument(text),
                    remedy=instead,
                    kind="no-effect",
                )
                self._left_out.add(text)
                self._mistakes.append(mistake)
                return None
            if self._mode == RunMode.MULTIRUN or not override.is_sweep_override():
                return override
            problem = "has several values, which only a sweep takes"
            remedy = f"sweep over them: `-m {arguments.quote_for_shell(text)}`"
            if override.is_choice_sweep() and "choice(" not in value:
                as_list, as_text = (arguments.quote_for_shell(f"{key}={said}") for said in (f"[{value}]", f'"{value}"'))
                remedy += f"; a list is `{as_list}`, a text with commas `{as_text}`"
            mistake = Mistake(key.lstrip("+~"), problem, where=format_argument(text), remedy=remedy, kind="conflict")
        self._left_out.add(text)
        self._mistakes.append(mistake)
        return None

    def _hydras_without_effect(self, override: Override) -> str:
        """Return the remedy for an override of Hydra's without effect; empty where Hydra itself composes."""
        if not self._of_the_runner or not override.key_or_group.startswith(("hydra.", "hydra/")):
            return ""
        return arguments.find_remedy(override.key_or_group, override._value)  # noqa: SLF001

    def _apart(self, overrides: Sequence[str]) -> set[str]:
        """Record keys whose value is the next argument; return the arguments of these pairs."""
        found: set[str] = set()
        for at, after in arguments.find_pairs(overrides).items():
            text, value = overrides[at], overrides[after]
            said = arguments.diagnose_flag if text.startswith("-") else arguments.diagnose_valueless
            if not {text, value} <= self._left_out:
                self._mistakes.append(said(text, value, self.parse))
            found |= {*overrides[at : after + 1]}
        return found

    @staticmethod
    def _forced(override: Override, repository: IConfigRepository) -> Override:
        key, value = override.key_or_group, override._value  # noqa: SLF001  Hydra has no other way in
        if key.startswith("hydra.launcher.") and override.type == OverrideType.CHANGE:
            override.type = OverrideType.FORCE_ADD  # `runner.sweep.launcher_settings` judges the keys
        if override.is_hydra_override() or override.is_delete():
            return override
        if not repository.group_exists(key) or isinstance(value, dict):
            if override.package is None:
                override.type = OverrideType.FORCE_ADD
        elif value is None:
            override.type = OverrideType.DEL  # `experiment=null`, which Hydra writes `~experiment`
        elif isinstance(value, bool | int | float):
            override._value = (override.input_line or "").partition("=")[2]  # noqa: SLF001  an option named `18`
        return override

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        self._defaults = [default for default in defaults if self._may_configure_hydra(default, repo)]
        self._superseded = recipes.find_superseded(self._defaults, self._parsed, repo, self, CONFIG_NAME)
        for path, groups in self._superseded.items():
            loaded = repo.load_config(path)
            if loaded is not None and isinstance(loaded.config, DictConfig):
                recipes.leave_out(loaded.config, groups)
        return super()._compose_config_from_defaults_list(self._defaults, repo)

    def _may_configure_hydra(self, default: ResultDefault, repo: IConfigRepository) -> bool:
        """Return whether a default may stay; strip Hydra's keys from user files (a callback is code)."""
        path = self.repository.file(default.config_path or "")
        loaded = repo.load_config(default.config_path or "")
        if path is None or loaded is None or not isinstance(loaded.config, DictConfig):
            return True
        package = default.package or ""
        inside = loaded.config
        remedy = "give it on the command line"
        if package.split(".")[0] == "hydra" and not path.is_relative_to(find_our_conf() / "hydra"):
            parent = self.repository.file(default.parent or "")
            where = f"{path}:1"
            if parent is not None and not str(self.repository.read[path].text).startswith("# @package hydra"):
                group = (default.config_path or "").rpartition("/")[0]
                where = f"{parent}:{find_defaults_line(self.repository.read[parent], group)}"
            self.repository.note(Mistake(package, _OURS_ONLY, where=where, remedy=remedy, kind="composition"))
            return False
        if default.primary and not path.is_relative_to(find_our_conf()):
            self._refuse_options_of_hydra(path)
        if package == "" and "hydra" in inside and not (default.primary and path.is_relative_to(find_our_conf())):
            for key, value in _list_leaves(inside._get_node("hydra"), "hydra"):  # noqa: SLF001
                if default.primary and _is_same_in_ours(key, value):
                    continue  # a copy of our primary config
                if any(f"{key}.".startswith(f"{allowed}.") for allowed in _HYDRA_FROM_FILES):
                    continue
                found = document.find(self.repository.read[path].root, tuple(key.split(".")))
                where = f"{path}:{found[0] if found else 1}"
                plain = getattr(value, "_value", lambda value=value: value)()
                instead = arguments.find_remedy(key, plain)
                rule = arguments.NO_EFFECT if instead else _OURS_ONLY
                kind: Kind = "no-effect" if instead else "composition"
                self.repository.note(Mistake(key, rule, where=where, remedy=instead or remedy, kind=kind))
                inside.pop("hydra", None)
        return True

    def _refuse_options_of_hydra(self, path: Path) -> None:
        """Record options of Hydra's groups that a user's primary config adds to the runner's."""
        entries, own = (
            document.load(file).data.get("defaults", []) for file in (path, find_our_conf() / f"{CONFIG_NAME}.yaml")
        )
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            name = str(next(iter(entry), "") if isinstance(entry, dict) else entry)
            group = (name.split() or [""])[-1].lstrip("/")
            if entry not in own and re.match(r"hydra\b", group.partition("@")[0]):
                found = document.find(self.repository.read[path].root, ("defaults", index))
                where, remedy = f"{path}:{found[0] if found else 1}", "give it on the command line"
                self.repository.note(
                    Mistake(group.replace("/", "."), _OURS_ONLY, where=where, remedy=remedy, kind="composition")
                )

    def _replace_option(self, error: MissingConfigException) -> None:
        """Record an option that does not exist; continue with the nearest one, or with none."""
        missing = str(error.missing_cfg_file)
        group, _, option = missing.rpartition("/")
        options = self.repository.get_group_options(group) if group else []
        other = translate_name(f"{group}={option}") or (
            arguments.find_device_override(option) if group == "device" else ""
        )
        right = "" if other else find_nearest(option, options)
        misspelt = self.repository.yml(missing)
        where = self._who_chose(group, option)
        first, stem = group.partition("/")[0], re.sub(r"[.]ya?ml$", "", option)
        if stem != option and stem in options:
            right = stem
        elif not right and not other and group and option.count(".") < 2:  # a whole path is a `_target_`
            right = self._find_option_of(option, group, options)
        beside = None if options else self.repository.yml(f"{first}/{stem}")
        if not options and (beside or stem in self.repository.get_group_options(first)):  # a path to the option's file
            where = where or self._who_chose(first, missing.removeprefix(f"{first}/"))
            misspelt = misspelt or beside
            group, right = first, stem
        remedy = format_suggestion(other or (right and f"{group}={right}"))
        if not right and not other and "." in option and group and stem == option:
            other = f"{group}._target_={option}"
            remedy = f"a class is set by `{other}`"
        if misspelt is not None:
            right, remedy = "", f"Hydra reads files that end in `.yaml` alone: rename {misspelt} to {stem}.yaml"
        choices = f" (there are {', '.join(options)})" if options and len(options) <= 20 else ""
        rule = f"has no option `{option}`{choices}"
        self._mistakes.append(
            Mistake(
                group or missing, rule, where=where, remedy=remedy, suggestion=right or other, kind="unknown-option"
            )
        )
        again = missing in self.repository.instead  # what stood in for it is not there either
        self.repository.instead[missing] = f"{group}/{right}" if right and not again else None
        if not right:
            self._unknown.add(group.replace("/", "."))

    def _find_option_of(self, name: str, group: str, options: Sequence[str]) -> str:
        """Return the option whose file names a class so, with or without its module; empty where none does."""
        last = name.rpartition(".")[2]
        for option in options:
            path = self.repository.file(f"{group}/{option}")
            target = document.load(path).data.get("_target_") if path is not None and path.is_file() else None
            if isinstance(target, str) and target.rpartition(".")[2] == last:
                return option
        return ""

    def _who_chose(self, group: str, option: str) -> str:
        for override in reversed(self._parsed):
            if override.key_or_group == group and str(override.value()) == option:
                return format_argument(override.input_line or "")
        for path, loaded in reversed(self.repository.read.items()):
            line = find_defaults_line(loaded, group, option)
            if line > 1 or (line == 1 and _has_default(loaded, group, option)):
                return f"{path}:{line}"
        return ""

    def _leave_out(self, overrides: Sequence[str], error: Exception) -> None:
        """Record and drop the override or file that Hydra cannot apply; raise where neither is to blame."""
        text = "\n".join(str(e) for e in (error, error.__cause__) if e)
        lines = {override.input_line or "": override for override in self._parsed}
        culprit = next((line for line in sorted(lines, key=len, reverse=True) if line and line in text), None)
        quoted = re.search(r"'([^']+)'", text)
        if culprit is None and quoted:
            culprit = next((line for line, o in lines.items() if o.get_key_element().lstrip("+~") == quoted[1]), None)
        if culprit is None and not text.startswith("In '"):
            culprit = next((line for line in lines if self._composes_without(overrides, line)), None)
        if culprit is not None:
            self._left_out.add(culprit)
            key = lines[culprit].key_or_group
            right = _suggest_argument(lines[culprit], text)
            mistake = Mistake(
                key,
                _format_problem(text),
                where=format_argument(culprit),
                remedy=format_suggestion(right),
                suggestion=right,
                kind="composition",
            )
            self._mistakes.append(mistake)
            return
        file = re.match(r"In '([^']+)'", text)
        path = self.repository.file(file[1]) if file else None
        if path is None or path in {Path(m.key) for m in self._mistakes}:
            raise ConfigError(
                [*self._mistakes, Mistake("config", f"cannot be composed: {_format_problem(text)}", kind="composition")]
            ) from None
        loaded = self.repository.read[path]
        right = find_nearest(quoted[1], []) if quoted else ""
        entry = re.search(r"Could not override '([^'@]+)", text)
        line = find_defaults_line(loaded, entry[1]) if entry else 1
        key = entry[1] if entry else (file[1] if file else "")
        self._mistakes.append(
            Mistake(
                key,
                _format_problem(text.partition(": ")[2]),
                where=f"{path}:{line}",
                suggestion=right,
                kind="composition",
            )
        )
        self.repository.instead[file[1] if file else ""] = None

    def _cut_circle(self) -> None:
        """Record a circle of defaults lists and drop the entry that closes it."""
        ring = self.repository.circle()
        if not ring:
            raise ConfigError(
                [*self._mistakes, Mistake("defaults", "cannot be composed: nested too deeply", kind="composition")]
            ) from None
        places = [self.repository.place_of(path, after) for path, after in itertools.pairwise(ring)]
        rule = f"leads back to its own file: {' names '.join(f'`{path}`' for path in ring)}"
        where = places[-1] + (f" (by {', '.join(places[:-1])})" if places[:-1] else "")
        remedy = "take one of these entries out"
        self._mistakes.append(Mistake(f"{ring[-2]}: defaults", rule, where=where, remedy=remedy, kind="composition"))
        self.repository.cut.add((ring[-2], ring[-1]))

    def _composes_without(self, overrides: Sequence[str], line: str) -> bool:
        try:
            super().load_configuration(
                CONFIG_NAME, [o for o in overrides if o != line], self._mode, validate_sweep_overrides=False
            )
        except Exception:  # noqa: BLE001  any failure: another override is to blame too
            return False
        return True


def _has_default(loaded: Document, group: str, option: str) -> bool:
    entries = loaded.data.get("defaults", [])
    return any(
        isinstance(entry, dict) and str(name).split()[-1].lstrip("/") == group and value == option
        for entry in (entries if isinstance(entries, list) else [])
        for name, value in (entry.items() if isinstance(entry, dict) else ())
    )


def _format_problem(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line and not line.startswith("Error merging override")]
    line = lines[0].rstrip(". ") if lines else "it does not fit what is there"
    return f"cannot be applied: {line[0].lower()}{line[1:]}"


def _suggest_argument(override: Override, text: str) -> str:
    """Return the argument that was probably meant; empty where it is unknown."""
    if override.is_add() and "Multiple values" in text:
        return f"{override.get_key_element().lstrip('+')}={override.value()}"
    if "No match in the defaults list" in text and override.key_or_group:
        return f"+{override.get_key_element()}={override.value()}"
    return ""


def _is_same_in_ours(key: str, value: Any) -> bool:
    own: Any = document.load(find_our_conf() / f"{CONFIG_NAME}.yaml").data
    for part in key.split("."):
        own = own.get(part) if isinstance(own, dict) else None
    return bool(getattr(value, "_value", lambda: value)() == own)


def _list_leaves(node: Any, key: str) -> Iterable[tuple[str, Any]]:
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing() and len(node):  # noqa: SLF001
        for name in node:
            yield from _list_leaves(node._get_node(name), f"{key}.{name!s}")  # noqa: SLF001
    else:
        yield key, node
