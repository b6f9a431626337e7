"""What mkdocs does with the pages beside what GitHub shows of them.

- Links to files of the repository outside docs/ lead to `repo_url`, or become plain text without
  one.
- `<!-- ::: name -->` is where mkdocstrings writes what a name's docstring says.
- Markdown inside `<details>` is Markdown.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from typing import Any, Final

from docs.house import ROOT, copy_tree

_SOURCE: Final = ROOT / "build" / "docs-source"
_LINK: Final = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE: Final = re.compile(r"^(```+).*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)


def on_startup(*, command: str, dirty: bool) -> None:
    """Puts the package together as it is installed: convert/ and cli/ stand beside it here.

    At the very start, because mkdocstrings looks for the folder when it is configured.
    """
    shutil.rmtree(_SOURCE, ignore_errors=True)
    copy_tree(_SOURCE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """The page as mkdocs is to read it."""
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def link(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        path, _, anchor = target.partition("#")
        where = posixpath.normpath(posixpath.join(folder, path))
        if image or not path or ":" in path or where.startswith("docs/"):
            return found[0]
        if not config.repo_url:
            return text
        return (
            f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{where}{'#' * bool(anchor)}{anchor})"
        )

    made, at = [], 0
    for fence in _FENCE.finditer(markdown):  # what is shown as code stays as it is
        made += [_LINK.sub(link, markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    text = "".join([*made, _LINK.sub(link, markdown[at:])])
    text = text.replace("<details>", '<details markdown="1">')
    return re.sub(r"^<!-- (::: [\w.]+) -->$", r"\n\1\n", text, flags=re.MULTILINE)
