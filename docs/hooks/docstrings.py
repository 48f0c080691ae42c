r"""What docstrings hold beside Markdown, for the API reference: formulas, names, doctests.

Formulas become MathML while the site is built (latex2mathml), which browsers draw by themselves: no
script has to be fetched, or run, to read one.

| written | shown |
| --- | --- |
| `$\alpha$` | MathML in the line |
| `$$...$$`, on lines that hold nothing else | MathML on a line of its own |
| a name in code, whole, from `sharpjax` on | a link, where the name has a place in the reference |
| `>>> ...` | a block of code, up to the next empty line |
"""

import re

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

_FENCE = re.compile(r"^\s*(```|~~~)")
_DISPLAY = re.compile(r"^( *)\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`+[^`]+`+|\$(?=\S)([^$`]+?)(?<=\S)\$")  # code stays, but for our own names
_AFTER_FENCES_ARE_WHOLE = 27  # lines are normal by then (30), and fences not yet replaced (25)


class _Docstrings(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        parts, text, fence = [], [], None
        for line in lines:  # fenced code stays as it is
            mark = _FENCE.match(line)
            text.append(line)
            if mark and fence in (None, mark[1]):
                if fence is None:
                    parts.append(self._replaced(text[:-1]))
                    text, fence = [line], mark[1]
                else:
                    parts.append(text)
                    text, fence = [], None
        parts.append(text if fence else self._replaced(text))
        return [line for part in parts for line in part]

    def _replaced(self, lines: list[str]) -> list[str]:
        text = "\n".join(self._doctests(lines))
        text = _DISPLAY.sub(lambda m: f"\n{m[1]}{self._stored(m[2], display='block')}\n", text)
        return _INLINE.sub(self._inline, text).split("\n") if lines else []

    @staticmethod
    def _doctests(lines: list[str]) -> list[str]:
        out, inside = [], False
        for line in lines:
            if not inside and line.startswith(">>> "):
                out += ["", "```pycon"]
                inside = True
            elif inside and not line.strip():
                out.append("```")
                inside = False
            out.append(line)
        return [*out, "```"] if inside else out

    def _inline(self, found: re.Match) -> str:
        if found[1] is not None:
            return self._stored(found[1], display="inline")
        if not re.fullmatch(r"`sharpjax(\.\w+)+`", found[0]):
            return found[0]
        name = found[0].strip("`")
        shown = f"<code>{name.rpartition('.')[2]}</code>"
        return self.md.htmlStash.store(f'<autoref optional identifier="{name}">{shown}</autoref>')

    def _stored(self, formula: str, *, display: str) -> str:
        text = convert(" ".join(formula.split()), display=display)
        return self.md.htmlStash.store(text.replace(r"\_", "_"))  # which stays as it is in \text


class _Extension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_Docstrings(md), "docstrings", _AFTER_FENCES_ARE_WHOLE)


def on_config(config):
    """Read by MkDocs: docstrings and pages are turned into HTML by the same extensions."""
    config.markdown_extensions.append(_Extension())
    return config
