"""Write the tree of `runner/` into docs/explanation/architecture.md, a line a file: `python -m tests.source_tree`."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
BLOCK = re.compile(r"(?<=<!-- tree -->\n```text\n).*?(?=```\n<!-- /tree -->)", re.DOTALL)


def summary(file: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def tree(folder: Path, depth: int = 0) -> list[str]:
    """List a package: its own line, its modules, then its packages."""
    indent = "  " * depth
    lines = [f"{indent}{folder.name}/".ljust(30) + summary(folder / "__init__.py")]
    files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
    lines += [f"{indent}  {file.name}".ljust(30) + summary(file) for file in files]
    for package in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines += tree(package, depth + 1)
    return [line.rstrip() for line in lines]


def page() -> str:
    """Return the page with the tree as the files are now."""
    text = "\n".join(tree(ROOT / "runner")) + "\n"
    return BLOCK.sub(lambda _: text, PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
