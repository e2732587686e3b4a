"""Verbs: the first words of a command line, and the module that serves each."""

QUESTIONS = frozenset({"-h", "--help", "-V", "--version"})  # wherever they stand, they are answered and nothing else


HYDRA_FLAGS = frozenset({"--hydra-help", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc"})


VERBS = {  # name → module; what a verb imports is paid by that verb only
    "check": "runner.cli.check",
    "show": "runner.cli.show",
    "find": "runner.cli.find",
    "why": "runner.cli.why",
    "resume": "runner.cli.resume",
    "evaluate": "runner.cli.evaluate",
    "predict": "runner.cli.predict",
    "export": "runner.cli.export",
    "explain": "runner.cli.explain",
    "audit": "runner.cli.audit",
    "convert": "runner.cli.convert",
    "report": "runner.cli.report",
    "promote": "runner.cli.promote",
    "blame": "runner.cli.blame",
    "compare": "runner.cli.compare",
    "diff": "runner.cli.diff",
    "ls": "runner.cli.ls",
    "trust": "runner.cli.trust",
    "help": "runner.cli.help",
    "new": "runner.cli.new",
    "schema": "runner.cli.schema",
    "rm": "runner.cli.rm",
    "archive": "runner.cli.archive",
    "replay": "runner.cli.replay",
    "record": "runner.cli.record",
}


# Verbs that answer at once: they load no torch.
QUICK = frozenset({"help", "new", "why", "ls", "rm", "archive", "trust", "diff", "compare", "report"})


# First words of other tools' command lines, and the verb that does the same; without one a run is trained.
ELSEWHERE = {
    "train": "",
    "fit": "",
    "run": "",
    "start": "",
    "eval": "evaluate",
    "test": "evaluate",
    "validate": "evaluate",
    "continue": "resume",
    "init": "new",
    "create": "new",
    "list": "ls",
    "remove": "rm",
    "delete": "rm",
    "version": "--version",
    "infer": "predict",
}
