"""Difference of code between two recorded states of a git repository, uncommitted changes included."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SECONDS = 30  # that one call of git may take


MOST_BYTES = 20_000_000  # of a difference


# Nothing that a repository or a user configures runs a program.
_GIT = ("git", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false", "-c", "core.hooksPath=/dev/null")


_PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color")


@dataclass
class CodeDifference:
    """Difference of code.

    Attributes:
        is_same: whether both states are the same; None where that is not known.
        commits: of A and of B; None where there is none.
        stat: files and numbers of lines, as `git diff --stat` has them.
        text: the whole difference.
        notes: what could not be compared, and why.
    """

    is_same: bool | None = None
    commits: tuple[str | None, str | None] = (None, None)
    stat: str = ""
    text: str = ""
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain data for `--json`."""
        return asdict(self)


class _NoState(Exception):
    """State of the code that cannot be built."""


def compare_code(a: Mapping[str, Any], b: Mapping[str, Any], root: Path) -> CodeDifference:
    """Compare the code that two provenances record: each commit with its uncommitted changes applied.

    The trees are built beside the repository around `root`, in which nothing is written. Both records may come from
    strangers: only their commits and changes are read, and no program of a configuration runs.
    """
    states = [state if isinstance(state := record.get("git"), Mapping) else {} for record in (a, b)]
    commits = [commit if _is_commit(commit := state.get("commit")) else None for state in states]
    found = CodeDifference(commits=(commits[0], commits[1]))
    for name, state, commit in zip("AB", states, commits, strict=True):
        if commit is None:
            found.notes.append(f"{name} was recorded without a git commit: only its modules' hashes are known")
        found.notes += _note_gaps(name, state)
    if None in commits:
        return found
    if commits[0] == commits[1] and states[0].get("diff", "") == states[1].get("diff", ""):
        unknown = any(state.get("dirty") and "diff" not in state for state in states)
        found.is_same = None if unknown else True
        return found
    try:
        with tempfile.TemporaryDirectory() as folder:
            trees = _Trees(root, Path(folder))
            built = [
                trees.build(str(commit), state, found.notes, name)
                for name, commit, state in zip("AB", commits, states, strict=True)
            ]
            found.stat = trees.run("diff", *_PLAIN, "--stat=100", *built)
            found.text = trees.run("diff", *_PLAIN, *built)
            found.is_same = not found.text and not found.notes
    except _NoState as error:
        found.notes.append(str(error))
    return found


def _is_commit(commit: object) -> bool:
    return isinstance(commit, str) and re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?", commit) is not None


def _note_gaps(name: str, state: Mapping[str, Any]) -> list[str]:
    notes = []
    if state.get("dirty") and "diff" not in state:
        notes.append(f"the uncommitted changes of {name} are not in its record")
    if state.get("diff_complete") is False:
        notes.append(f"the recorded changes of {name} are cut off")
    untracked = state.get("untracked")
    if isinstance(untracked, list) and untracked:
        listed = ", ".join(map(str, untracked[:5])) + (", …" if len(untracked) > 5 else "")
        notes.append(f"{name} had files that git did not track, whose content is not recorded: {listed}")
    return notes


class _Trees:
    """Trees of git, built with an index and objects of their own in a folder."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", "GIT_NO_LAZY_FETCH": "1"}
        self._top = root
        self._top = Path(self.run("rev-parse", "--show-toplevel").strip())
        objects = Path(self.run("rev-parse", "--git-path", "objects").strip())
        objects = objects if objects.is_absolute() else self._top / objects
        (folder / "objects").mkdir()
        self._environment |= {
            "GIT_OBJECT_DIRECTORY": str(folder / "objects"),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
            "GIT_INDEX_FILE": str(folder / "index"),
        }

    def run(self, *arguments: str, given: str | None = None) -> str:
        """Run git and return its output.

        Raises:
            _NoState: there is no git or no repository, or git refuses.
        """
        data = None if given is None else given.encode(errors="surrogateescape")
        try:
            done = subprocess.run(  # noqa: S603  the arguments are ours, the commit is hexadecimal
                [*_GIT, *arguments],
                cwd=self._top,
                env=self._environment,
                input=data,
                capture_output=True,
                timeout=SECONDS,
                check=False,
                stdin=subprocess.DEVNULL if data is None else None,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            message = f"git cannot tell: {error}"
            raise _NoState(message) from error
        if done.returncode or len(done.stdout) > MOST_BYTES:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            message = f"git {arguments[0]} fails: {said[0] if said else 'its answer is too long'}"
            raise _NoState(message)
        return done.stdout.decode(errors="replace")

    def build(self, commit: str, state: Mapping[str, Any], notes: list[str], name: str) -> str:
        """Build the tree of a state; where its changes do not apply, that of its commit, which is noted.

        Raises:
            _NoState: the repository does not have the commit.
        """
        try:
            self.run("read-tree", f"{commit}^{{tree}}")
        except _NoState as error:
            message = f"the commit {commit[:12]} of {name} is not in the repository here: fetch it to compare the code"
            raise _NoState(message) from error
        changes = state.get("diff")
        if isinstance(changes, str) and changes.strip():
            sections = re.split(r"(?m)^(?=diff --git )", changes)
            texts = [section for section in sections if "\nBinary files " not in section]
            if len(texts) < len(sections):
                notes.append(f"{name} had changed binary files, whose content is not recorded")
            if "".join(texts).strip():
                try:
                    self.run("apply", "--cached", "--whitespace=nowarn", "-", given="".join(texts))
                except _NoState as error:
                    notes.append(f"the uncommitted changes of {name} do not apply ({error}): its commit is compared")
        return self.run("write-tree").strip()
