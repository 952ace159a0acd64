"""The code on the documentation's pages runs, and their links lead somewhere.

Every ```python block of `docs/**/*.md` is executed: the blocks of a page in order and in one namespace, in an empty
working directory. A block under the HTML comment `<!-- not run -->` is left out.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.program import ENVIRONMENT, rlx

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(
    r"^(?P<skip><!-- not run -->\n+)?(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`[^`\n]*`")


def code_blocks(text: str) -> list[tuple[int, str]]:
    """Return for each block that is to run the number of its first line and its code."""
    blocks: list[tuple[int, str]] = []
    for match in BLOCK.finditer(text):
        if match["skip"] is None:
            indent = match["indent"]
            code = "".join(line.removeprefix(indent) for line in match["code"].splitlines(keepends=True))
            blocks.append((text.count("\n", 0, match.start("code")) + 1, code))
    return blocks


def anchors(text: str) -> set[str]:
    """Return the names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> list[str]:
    """Return the links of a page to files, and to headings of pages, that are not there."""
    dead: list[str] = []
    for link in LINK.findall(SPAN.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", *(f"docs/{page}" for page in PAGES)])
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    assert dead_links(DOCS.parent / page) == []


def test_a_link_to_nowhere_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# What is `there`, and why?\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](there.md) [b](there.md#what-is-there-and-why) [c](https://example.com) ![d](#here) `[e](f)`\n"
        "# Here\n[g](gone.md) ![h](gone.png) [i](there.md#gone) [j](there.md#no-heading) [k](#gone)\n"
    )
    assert dead_links(page) == ["gone.md", "gone.png", "there.md#gone", "there.md#no-heading", "#gone"]


@pytest.mark.parametrize("page", [page for page in PAGES if page != "notebooks.md"])
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = DOCS / page
    name = "docs_" + re.sub(r"\W", "_", page)
    module = ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    for line, code in code_blocks(path.read_text(encoding="utf-8")):
        # As many empty lines in front, so that a traceback names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), module.__dict__)


def test_the_code_of_the_page_on_notebooks_runs_where_no_module_has_it(tmp_path: Path) -> None:
    code = "\n".join(code for _, code in code_blocks((DOCS / "notebooks.md").read_text(encoding="utf-8")))
    done = subprocess.run(
        [sys.executable, "-"], input=code, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr


def test_blocks_are_found_with_their_lines_and_skipped_when_marked() -> None:
    text = (
        "# Page\n\n```python\na = 1\n```\n\n<!-- not run -->\n```python\n1 / 0\n```\n"
        "```bash\nls\n```\n\n- item\n\n  ```python\n  if a:\n      b = 2\n  ```\n"
    )
    assert code_blocks(text) == [(4, "a = 1\n"), (18, "if a:\n    b = 2\n")]


def test_the_project_of_the_page_on_own_algorithms_trains_with_its_own_commands(tmp_path: Path) -> None:
    text = (DOCS / "your_own_algorithm.md").read_text(encoding="utf-8")
    code = code_blocks(text)[0][1]
    (numbers,) = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    files = {"my_rl/__init__.py": "", "my_rl/reinforce.py": code, "my_conf/algo/reinforce.yaml": numbers}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    commands = re.findall(r"^rlx train (--config-dir my_conf .*?)(?: +#.*)?$", text, re.MULTILINE)
    assert len(commands) == 3
    for number, command in enumerate(commands):
        done = rlx(tmp_path, "train", *shlex.split(command), "total_steps=512", f"run_dir=runs/{number}")
        assert done.returncode == 0, done.stderr
    written = sorted(tmp_path.glob("runs/**/config.yaml"))
    assert len(written) == 2 + 3  # the last one is a sweep over three seeds
    for path in written:
        algo = yaml.safe_load(path.read_text(encoding="utf-8"))["algo"]
        assert (algo["_target_"], algo["num_steps"]) == ("my_rl.reinforce.train", 32)
