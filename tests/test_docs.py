"""The code on the documentation's pages runs.

Every ```python block of `docs/*.md` is executed: the blocks of a page in order and in one namespace, in an empty
working directory. A block under the HTML comment `<!-- not run -->` is left out.
"""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(
    r"^(?P<skip><!-- not run -->\n+)?(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
PAGES = sorted(page.name for page in DOCS.glob("*.md"))


def code_blocks(text: str) -> list[tuple[int, str]]:
    """Return for each block that is to run the number of its first line and its code."""
    blocks: list[tuple[int, str]] = []
    for match in BLOCK.finditer(text):
        if match["skip"] is None:
            indent = match["indent"]
            code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
            blocks.append((text.count("\n", 0, match.start("code")) + 1, code))
    return blocks


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = DOCS / page
    name = f"docs_{path.stem.replace('-', '_')}"
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    for line, code in code_blocks(path.read_text(encoding="utf-8")):
        # As many empty lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), module.__dict__)


def test_blocks_are_found_with_their_lines_and_skipped_when_marked() -> None:
    text = (
        "# Page\n\n```python\na = 1\n```\n\n<!-- not run -->\n```python\n1 / 0\n```\n"
        "```bash\nls\n```\n\n- item\n\n  ```python\n  if a:\n      b = 2\n  ```\n"
    )
    assert code_blocks(text) == [(4, "a = 1\n"), (18, "if a:\n    b = 2\n")]
