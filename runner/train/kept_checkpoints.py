"""Checkpoints that an archive keeps: the best one, and the last of a run that may be resumed."""

from runner.core import files
from runner.core.errors import RunError
from runner.train.checkpoint import CheckpointEntry, Checkpoints, write_manifest


class KeptCheckpoints(Checkpoints):
    """Checkpoints of a run, all of which may be dropped but those that an archive keeps."""

    @property
    def is_remade(self) -> bool:
        """Whether the manifest is missing or damaged, so that it was made again from the files."""
        return bool(self._remade)

    def choose_kept(self, *, keep_last: bool) -> list[CheckpointEntry]:
        """Choose those that stay: the best, and the last where that is asked for or there is no best."""
        best, last = self.best(), self.newest()
        return [entry for entry in self.entries() if entry == best or (entry == last and (keep_last or best is None))]

    def drop_others(self, kept: list[CheckpointEntry]) -> None:
        """Drop every checkpoint but these, after reading them back; the manifest says which step was the last.

        Whatever instant the machine stops at, the manifest names whole files only.

        Raises:
            RunError: one of them is damaged; nothing was dropped.
        """
        try:
            for entry in kept:
                files.read_back(self.folder / entry.file, entry.sha256)
        except OSError as error:
            message = f"{error.filename or self.folder} is damaged ({error.strerror}), so that nothing is dropped"
            raise RunError(message) from error
        last = self.newest()
        dropped = last.step if last is not None and last not in kept else self.read_dropped_step()
        write_manifest(self.folder, kept, dropped)
        self._entries = kept
        self.finish()
        if dropped is not None:
            files.remove(self.folder / "last.pt")
