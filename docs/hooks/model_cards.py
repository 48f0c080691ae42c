"""The model cards of `sharpjax/zoo` as pages, so that links to them work on the site too.

In the repository a page links to `../sharpjax/zoo/NAME/README.md`; on the site the same card is
`zoo/NAME/README.md`.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

_ZOO = re.compile(r"\]\((?:\.\./)+sharpjax/zoo/")
_OTHERS = re.compile(r"`docs/([a-z_]+)\.md`")


def on_files(files, config):
    """Read by MkDocs."""
    zoo = Path(config.config_file_path).parent / "sharpjax" / "zoo"
    for path in sorted(zoo.glob("*/*")):
        if path.name in ("README.md", "samples.png"):
            name = f"zoo/{path.parent.name}/{path.name}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Read by MkDocs."""
    up = "../" * page.file.src_uri.count("/")
    if page.file.src_uri.startswith("zoo/"):
        return _OTHERS.sub(rf"[\1.md]({up}\1.md)", markdown)
    return _ZOO.sub(f"]({up}zoo/", markdown)
