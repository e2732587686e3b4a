"""The house stays in order: entries, sizes, names and summaries, read from the source alone."""

import ast
import re
from collections import Counter
from pathlib import Path

from tests.source_tree import PAGE, page

ROOT = Path(__file__).parents[1] / "runner"
MODULES = {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in sorted(ROOT.rglob("*.py"))}

LONGEST = 520  # lines: "no file over about 500"

# The first word of a function's name. To add a verb is fine; a noun belongs to a class or a variable.
VERBS = """
accept add adjust adopt advance align answer append apply arm ask assign attach audit balance be begin bind blame
blend broadcast build cache call can catch change check choose claim classify clean clear clip clone close collate
collect combine commit compare compile complete compose compute concatenate connect contain continue convert copy
count create crop cut decide decode define delete depend derive describe detach detect diagnose differ discard dismiss
distribute divide does dominates download draw drop emit encode end ensure enter erase escape estimate evaluate
examine exclude exit expand explain export extract fetch fill filter find finish fit fits fix flag flatten flip fold
follow forecast forget fork format freeze gather generate get give group guess halve handle has hash hide hold import
include index infer init insert inspect install instantiate interpolate intersect is iterate join judge keep kill
label launch leave limit link list load locate lock log look lower make map mark match matches may measure mend merge
mix modify move must name narrow need needs normalize note number open order overlap pack pad parse pass patch pause
permute pick place plan plot pool prefetch preload prepare preview print profile project promote propose prove provide
prune publish put quote raise rank read rebuild receive recommend reconcile record redirect reduce refer refuse
register rehearse reject release remember remove rename render repair repeat replace replicate report request require
resample reschedule reset reshape resize resolve restore restrain restrict resume retry return reverse rewrite round
run sample save say scale scan schedule score search seed select send separate serialize serve set settle shard share
should show shrink shuffle sign simplify skip slice smooth solve sort spell split spread stack standardize start stop
store stream strip submit substitute suggest sum summarize supervise support suppress suspend swap sync synchronize
take takes tell test tokenize trace track train transform translate traverse trim trust try uncompile understand undo
unfreeze unify unpack unpickle unscale unwrap update use uses validate verify visit wait walk wants warm warn watch
weigh weight widen will work works wrap write yield zip
"""
PARTICLES = ("as", "to", "from", "with", "without")  # conversions and context managers, as in `as_tensor`, `to_image`
NO_VERBS = {
    "main": "the entry of a module that is run",
    "supervised": "a step: its name stands in users' YAML",
    "minimise": "a step: its name stands in users' YAML",
    "state_dict": "PyTorch's name",
}

# Words that begin a sentence about nobody: the subject is named instead.
VAGUE = re.compile(
    r"(What|Of|That|The same|Those|Which|It|Its|They|Also|And|Or|Not|Nor|Neither|Where|With|Without|As|By|In|On|At|For|"
    r"From|To|Into|So|But|This|Such|One that|Anything|Nothing|Something|Whatever|How|When|Who|Why)\b"
)


def test_the_entrance_shows_the_nine_wings():
    shown = [entry.name for entry in ROOT.iterdir() if entry.name not in ("py.typed", "__pycache__")]
    assert len(shown) <= 11, sorted(shown)


def test_no_file_is_long():
    sizes = {name: len((ROOT / name).read_text().splitlines()) for name in MODULES}
    assert {name: size for name, size in sizes.items() if size > LONGEST} == {}


def test_class_names_are_unique():
    counts = Counter(node.name for tree in MODULES.values() for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in counts.items() if count > 1] == []


def test_function_names_begin_with_a_verb():
    known = {*VERBS.split(), *PARTICLES}
    functions = [
        (name, node.name)
        for name, tree in MODULES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in NO_VERBS
    ]
    assert [(file, name) for file, name in functions if name.lstrip("_").split("_")[0] not in known] == []


def summaries(node, name):
    """Yield each docstring's first paragraph below `node`, with the name of what it describes."""
    if text := ast.get_docstring(node):
        yield name, text.split("\n\n")[0]
    for child in getattr(node, "body", []):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from summaries(child, f"{name}.{child.name}")


def test_a_summary_is_one_plain_line():
    found = [summary for name, tree in MODULES.items() for summary in summaries(tree, name)]
    assert len(found) > 1000
    assert [(name, text) for name, text in found if VAGUE.match(text) or len(text) > 100 or "\n" in text] == []


def test_a_wing_says_what_it_is_for_and_holds_no_code():
    for wing in ROOT.iterdir():
        if wing.is_dir() and wing.name != "__pycache__":
            (docstring,) = MODULES[f"{wing.name}/__init__.py"].body
            assert isinstance(docstring, ast.Expr), wing.name


def test_the_tree_of_the_source_tour_is_that_of_the_files():
    assert PAGE.read_text() == page(), "python -m tests.source_tree"
