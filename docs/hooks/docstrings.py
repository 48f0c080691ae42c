r"""What docstrings hold beside Markdown, for the API reference: formulas, roles, doctests.

Formulas become MathML while the site is built (latex2mathml), which browsers draw by themselves: no
script has to be fetched, or run, to read one.

========================  ==========================================================
``:math:`\alpha` ``       MathML in the line
``.. math:: ...``         MathML on a line of its own
``:func:`~package.name` ``  a link, where the name has a place in the reference; else code
``>>> ...``               a block of code, up to the next empty line
========================  ==========================================================
"""

import re

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

_FENCE = re.compile(r"^\s*(```|~~~)")
_DIRECTIVE = re.compile(r"^( *)\.\. math::(.*)$")
_ROLE = re.compile(r":(math|func|class|mod|data|meth|attr):`([^`]+)`")
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
        text = "\n".join(self._doctests(self._directives(lines)))
        return _ROLE.sub(self._role, text).split("\n") if lines else []

    def _directives(self, lines: list[str]) -> list[str]:
        """``.. math::``, its formula on that line and on the indented ones that follow."""
        out, rest = [], list(lines)
        while rest:
            line = rest.pop(0)
            if not (found := _DIRECTIVE.match(line)):
                out.append(line)
                continue
            formula = [found[2]]
            while rest and (not rest[0].strip() or rest[0].startswith(found[1] + " ")):
                if not rest[0].strip() and not (len(rest) > 1 and rest[1].startswith(" ")):
                    break
                formula.append(rest.pop(0))
            out += ["", found[1] + self._stored(formula, display="block"), ""]
        return out

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

    def _role(self, found: re.Match) -> str:
        role, text = found[1], " ".join(found[2].split())
        if role == "math":
            return self._stored([text], display="inline")
        shown = text.removeprefix("~").rpartition(".")[2] if text.startswith("~") else text
        name = text.lstrip("~")
        if not name.startswith("sharpjax"):
            return f"`{shown}`"
        link = f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'
        return self.md.htmlStash.store(link)

    def _stored(self, formula: list[str], *, display: str) -> str:
        text = convert(" ".join(formula).strip(), display=display)
        return self.md.htmlStash.store(text.replace(r"\_", "_"))  # which stays as it is in \text


class _Extension(Extension):
    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_Docstrings(md), "docstrings", _AFTER_FENCES_ARE_WHOLE)


def on_config(config):
    """Read by MkDocs: docstrings and pages are turned into HTML by the same extensions."""
    config.markdown_extensions.append(_Extension())
    return config
