"""`python -m runner`: a verb, Hydra's own questions, a sweep, or a run."""
# PYTHON_ARGCOMPLETE_OK: a shell may start this to ask what can stand at the cursor (`runner/cli/completion.py`)

import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from runner.cli.verbs import ELSEWHERE, QUESTIONS, QUICK, VERBS
from runner.core import event_stream
from runner.core.escape import make_printable
from runner.core.exit_status import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_STOPPED, EXIT_WRONG
from runner.core.stop_signals import STOP_SIGNALS
from runner.core.terminal import print_loading_line

if TYPE_CHECKING:
    from runner.core.errors import Mistake
    from runner.train.distributed.environment import RankPlace


BEGAN = time.perf_counter()


def main(argv: Sequence[str] | None = None, began: float | None = None) -> int:
    """Do what the command line asks; return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if sys.path[0] == "":  # `python -m` started elsewhere than at a file: user code lies in the working directory
        sys.path[0] = str(Path.cwd())
    # cuBLAS is deterministic only with a fixed workspace, and must find this before torch is imported.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from runner.train.distributed import environment

    place = environment.read_place()
    wants_json = any(argument.partition("=")[0] == "--json" for argument in argv)
    if place is not None and place.rank:
        from runner.cli.options import find_trust
        from runner.experiment.worker_rank import run_worker_rank

        if wants_json:  # rank 0 tells what happens
            event_stream.redirect_stdout()
        return run_worker_rank(place, find_trust(argv))
    if not wants_json:
        return serve_or_explain(argv, began, place)
    tells_events = argv[0] == "resume" or not (argv[0] in VERBS or QUESTIONS & {*argv})
    with event_stream.claim_stdout(events=tells_events):
        try:
            status = serve_or_explain(argv, began, place)
        except SystemExit as error:  # of somebody's code, or of a parser
            event_stream.end(error.code if isinstance(error.code, int) else int(error.code is not None))
            raise
        except BaseException as error:
            event_stream.end(EXIT_FAILED, error=f"{type(error).__name__}: {error}")
            raise
        event_stream.end(status)
        return status


def serve_or_explain(argv: list[str], began: float | None, place: "RankPlace | None") -> int:
    """Do what the command line asks, or say what is wrong with it; the exit status."""
    from runner.core.errors import ConfigError, RunError

    try:
        return serve(argv, began, place)
    except ConfigError as error:
        print(make_printable(error), file=sys.stderr)
        event_stream.print_problem(
            {"mistakes": [mistake.as_json() for mistake in error.mistakes], "count": len(error.mistakes)}
        )
        return EXIT_WRONG
    except RunError as error:  # of a verb; a run records its own
        print(make_printable(error), file=sys.stderr)
        event_stream.print_problem({"error": str(error)})
        return EXIT_FAILED
    except KeyboardInterrupt:  # before or after the training loop, which saves first
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough; nothing is left to be flushed at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except OSError as error:  # a folder that cannot be written, a file that cannot be read
        from runner.core.errors import explain_os_error

        print(make_printable(explain_os_error(error)), file=sys.stderr)
        event_stream.print_problem({"error": explain_os_error(error)})
        return EXIT_FAILED


def serve(argv: list[str], began: float | None, place: "RankPlace | None") -> int:
    """Do what the command line asks, in the one process that reads it; the exit status.

    Raises:
        ConfigError: the request is wrong.
        RunError: a verb could not do it.
    """
    from runner.core.errors import ConfigError

    asked = QUESTIONS & {*argv}
    words = [word for word in argv if word not in QUESTIONS | {"--json"}] if asked else argv
    verb = words[0] if words else ""
    if verb and verb[0].isalpha() and "=" not in verb and verb not in VERBS and not needs_value(words):
        raise ConfigError([describe_unknown_verb(verb)])  # before help and version, which would ignore it
    if asked:
        from runner.cli import help as help_page
        from runner.cli import version

        help_page.check_subject(words)
        words += ["--json"] * ("--json" in argv)
        return handle_ended((help_page.print_help if {"-h", "--help"} & asked else version.main)(words), place)
    if place is not None and verb in VERBS and verb != "resume":
        from runner.experiment.preflight import processes as processes_preflight

        raise ConfigError([processes_preflight.make_torchrun_mistake(verb, "start it without torchrun")])
    if verb in VERBS:
        status: int = importlib.import_module(VERBS[verb]).main(argv[1:])
        return handle_ended(status, place)
    from runner.cli import train

    return handle_ended(train.main(argv, began), place)


def handle_ended(status: int, place: "RankPlace | None") -> int:
    """Return the exit status, and end torchrun's other processes with it where nothing was trained."""
    if place is None:
        return status
    if status == EXIT_DONE:  # after any other, torchrun ends them
        from runner.train.distributed.process_group import dismiss

        dismiss(place, status)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what it sends to those that end a moment after the first
    return status


def needs_value(argv: list[str]) -> bool:
    """Return whether the line begins with a key whose value is the next argument, `optimizer.lr 0.1`."""
    from runner.config import arguments

    return argv[0] not in ELSEWHERE and 0 in arguments.find_pairs(argv)


def describe_unknown_verb(verb: str) -> "Mistake":
    """Make the mistake of a first argument that is no verb."""
    import difflib

    from runner.core.errors import Mistake

    near = [ELSEWHERE[verb]] if ELSEWHERE.get(verb) else difflib.get_close_matches(verb, VERBS, n=1)
    remedy = f"did you mean `{near[0]}`?" if near else f"the verbs are {', '.join(VERBS)}; an override is `key=value`"
    if verb in ELSEWHERE and not near:
        remedy = "leave it out: without a verb the runner trains, `python -m runner experiment=digits_mlp`"
    return Mistake(
        verb,
        "is no verb",
        where=f"argument `{verb}`",
        remedy=remedy,
        suggestion=near[0] if near else "",
        kind="unknown-option",
    )


def end_before_work(number: int, _: object) -> NoReturn:
    """End this process at a signal while nothing is under way, so that there is nothing to save."""
    event_stream.end(EXIT_STOPPED, signal=signal.Signals(number).name)
    os._exit(EXIT_STOPPED)


def run_command() -> NoReturn:
    """Run the installed command: user code lies in the working directory, as for `python -m runner`."""
    if "_ARGCOMPLETE" not in os.environ:
        sys.path[0] = str(Path.cwd())
    run_process()


def say_loading() -> None:
    """Say on a terminal that torch is about to be loaded: for seconds nothing else is said."""
    argv = sys.argv[1:]
    if {*argv[:1]} & QUICK or QUESTIONS & {*argv} or any(word.partition("=")[0] == "--json" for word in argv):
        return
    print_loading_line()


def run_process() -> NoReturn:
    """Run `main` as a process that a signal ends with the contract's status, also before the work."""
    if "_ARGCOMPLETE" in os.environ:
        del sys.path[0]  # the working directory may be a stranger's: nothing of it is imported for a key press
        from runner.cli.completion import answer_shell

        answer_shell()
    from runner.train.distributed import environment

    asked = [signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    if environment.read_place() is None:  # which signals what it has started for reasons of its own
        say_loading()
        for number in asked:
            signal.signal(number, end_before_work)
        if hasattr(signal, "SIGHUP") and (sys.argv[1:2] == ["resume"] or not {*sys.argv[1:2]} & {*VERBS}):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # training goes on where its terminal is closed
    status = main(began=BEGAN)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # Python takes a while to end, and would end with another status
    if "torch" not in sys.modules:  # all that was done here is ours: no file is left open in a cycle of references
        gc.freeze()  # the last search for such cycles takes 0.2 s after a sweep
    sys.exit(status)


if __name__ == "__main__":
    run_process()
