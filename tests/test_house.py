"""The house stays in order: entries, sizes, names and summaries, read from the source alone."""

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

from tests.source_tree import PAGE, page

ROOT, TESTS = Path(__file__).parents[1] / "runner", Path(__file__).parent
MODULES = {str(file.relative_to(ROOT)): ast.parse(file.read_text()) for file in sorted(ROOT.rglob("*.py"))}

LONGEST = 520  # lines: "no file over about 500"

# The first word of a function's name. To add a verb is fine; a noun belongs to a class or a variable.
VERBS = """
accept add adjust adopt advance align answer append apply arm ask assign attach audit balance be begin bind blame
blend broadcast build cache call can cast catch change check choose claim classify clean clear clip clone close collate
collect combine commit compare compile complete compose compute concatenate connect contain continue convert copy
correct count create crop cut decide decode define delete depend derive describe detach detect diagnose differ discard
dismiss
distribute divide does dominates download draw drop emit encode end ensure enter erase escape estimate evaluate
examine exclude exit expand explain export extract fetch fill filter find finish fit fits fix flag flatten flip fold
follow forecast forget fork format freeze gather generate get give group guard guess halve handle has hash hide hold
holds import include index infer init insert inspect install instantiate interpolate interpret intersect
is iterate join judge list
keep kill label launch leave lend limit link load locate lock log look lower make map mark match matches may measure
mend merge mix modify move must name narrow need needs normalize note number open order overlap pack pad parse pass
patch pause permute pick place plan plot pool predict prefetch preload prepare preview print profile project
promote propose orthogonalize
prove provide prune publish put quote raise rank read rebuild receive recommend reconcile record redirect reduce refer
refuse register rehearse reject release remember remove rename render repair repeat replace replicate report request
require resample reschedule reset reshape resize resolve restore restrain restrict resume retry return reverse rewrite
round run sample save say scale scan schedule score search seed select send separate serialize serve set settle shard
share should show shrink shuffle sign silence simplify skip slice smooth solve sort spell split spread
stack standardize start replay
stop store stream strip submit substitute suggest sum summarize supervise support suppress suspend swap sync
synchronize take takes tell test tokenize trace track train transform translate traverse trim trust try uncompile
understand undo unfreeze unify unpack unpickle unscale unwrap update use uses validate verify visit wait walk wants
warm warn watch weigh weight widen will work works wrap write yield zip
"""
PARTICLES = ("as", "to", "from", "with", "without")  # conversions and context managers, as in `as_tensor`, `to_image`
NO_VERBS = {
    "main": "the entry of a module that is run",
    "multirun": "the word of the command line, for a function of the Python API",
    "__getattr__": "Python's name",
    "__dir__": "Python's name",
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


# ---- the tests' own house

MOST_ASSERTIONS = 6
# Whole sweeps are stories: a later chapter cannot be had without those before it.
STORIES = {
    "test_each_way_to_fail_is_contained_told_and_tried_again_when_asked",
    "test_a_sweep_that_is_cut_off_in_every_way_ends_as_if_it_never_was",
    "test_points_added_removed_and_given_twice",
    "test_finished_jobs_of_other_code_stay_and_run_again_when_asked",
    "test_a_killed_search_loses_nothing_and_a_pruned_job_can_be_trained_to_its_end",
}
TEST_TREES = {str(file.relative_to(TESTS)): ast.parse(file.read_text()) for file in sorted(TESTS.rglob("*.py"))}


class Anonymous(ast.NodeTransformer):
    """Removes what a function may be called, say and annotate without becoming another one."""

    def __init__(self):
        self.names = {}

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node):
        node.arg, node.annotation = self.names.setdefault(node.arg, f"name{len(self.names)}"), None
        return node

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Store) or node.id in self.names:
            node.id = self.names.setdefault(node.id, f"name{len(self.names)}")
        return node


def body_of(node):
    """What a function or class does, whatever it is called."""
    copy = ast.parse(ast.unparse(node)).body[0]
    copy.name = "anonymous"
    if ast.get_docstring(copy):
        copy.body = copy.body[1:]
    return ast.dump(Anonymous().visit(copy))


def test_a_helper_of_two_test_files_stands_once():
    """In `support.py`, or as a fixture in `conftest.py`."""
    places = defaultdict(list)
    for file, tree in TEST_TREES.items():
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("test_"):
                places[body_of(node)].append(f"{file}: {node.name}")
    assert [found for found in places.values() if len(found) > 1] == []


def test_a_test_is_about_one_thing():
    tests = {
        f"{file}: {node.name}": sum(isinstance(inner, ast.Assert) for inner in ast.walk(node))
        for file, tree in TEST_TREES.items()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and node.name not in STORIES
    }
    assert {name: count for name, count in tests.items() if count > MOST_ASSERTIONS} == {}


def test_tests_lie_where_their_wing_does():
    wings = {entry.name for entry in ROOT.iterdir() if entry.is_dir() and entry.name != "__pycache__"}
    folders = {Path(file).parts[0] for file in TEST_TREES if len(Path(file).parts) > 1}
    assert folders <= {*wings, "benchmarks", "security"}  # attacks go through every wing
