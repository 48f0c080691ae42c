"""Files of prompts (plain text, tables and JSON), and what is known of each prompt."""

import csv
import dataclasses
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_PROMPT = "prompt"
_NAMES = (_PROMPT, "caption", "text")  # of the column of prompts: the first that is there
_LABEL_NAMES = ("label", "memorized", "memorised")
# of published lists; elsewhere they may hold anything, which is then no label
_LABEL_NAMES_IF_KNOWN = ("type", "overfit_type")
_TABLES, _JSON = (".csv", ".tsv"), (".json", ".jsonl")
_SEPARATORS = (",", ";", "\t")
LABELS_NAME = "labels.csv"  # what is known of the images of a directory
VERDICTS = ("memorized", "clean", "between", "another")
# Published lists: VM and TM of Wen et al. and NeMo, MV, RV, TV and N of Webster (matching and
# retrieved verbatim, template verbatim, none).
_MEANINGS = {
    "memorized": ("memorised", "1", "1.0", "true", "yes", "y", "vm", "tm", "mv", "rv", "tv"),
    "clean": ("0", "0.0", "false", "no", "n"),
    "between": (),
    "another": (),
}
NUM_MEMORIZED, NUM_CLEAN = 60, 20  # of the balanced choice; clean ones of each source
_LABELS: dict[str, str | None] = {
    name: verdict for verdict, others in _MEANINGS.items() for name in (verdict, *others)
} | {"": None, "nan": None}
_Row = tuple[str, dict[str, Any]]  # where it stands, for messages, and its cells by column


@dataclasses.dataclass(frozen=True)
class Case:
    """A condition or prompt to be judged.

    Attributes:
        condition: its name or text.
        verdict: `memorized`, `clean`, `between` or `another` (both kept apart), or None if
            not known.
        source: where it comes from; figures are given against the clean ones of each source.
        level: how often its images were repeated, or how many there are; 0 where not known.
        copy_rate: fraction of samples that are copies, None where not known.
        part: what a bench has it for: `tuning` or `test`; empty where not known.
        others: further columns of its file, carried as they are.
    """

    condition: str
    verdict: str | None = None
    source: str = ""
    level: int = 0
    copy_rate: float | None = None
    part: str = ""
    others: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)


def read_prompts(path: str | Path, *, column: str | None = None) -> list[str]:
    """The prompts of a file, in order; the same prompt may stand there twice.

    Args:
        path: its ending says what it is.

            - `.csv`, `.tsv`: a table whose first line names the columns; separated by commas,
              semicolons or tabs, as its first lines tell (`sep=` of Excel too). Empty rows are
              skipped.
            - `.jsonl`, `.json`: an object on each line, or an array of objects or texts. A
              `null` prompt is a blank one.
            - anything else: text, a prompt on each line, without the blanks around it; empty lines
              are skipped. A first line that looks like a table or JSON is read so too, with a
              warning.
        column: of the prompts, in a table or in objects. Default: `prompt`, `caption` or
            `text`, the first that is there, whatever their case.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompts in it, no UTF-8, no such column, or a line that gives no prompt.
    """
    name, rows = _read(Path(path), column, empty_rows=False)
    return [row[name] for _, row in rows]


def read_labelled(path: str | Path, *, column: str | None = None) -> list[Case]:
    """Every line, with what a table or objects say of it in `label`, `source` and `level`.

    A label is `memorized`, `clean`, `between` or `another`, in any case; `1`, `true`,
    `yes`, `VM`, `TM`, `MV`, `RV` and `TV` mean memorized, `0`, `false`, `no` and
    `N` clean; nothing, that it is not known.  The column may be called `memorized` too, or as
    in published lists `type` or `overfit_type` if only labels stand there.  Other columns are
    ignored with a warning.  An empty row of a table is a blank prompt.

    Raises:
        FileNotFoundError, ValueError: as `read_prompts`; or another label or level.
    """
    path = Path(path)
    name, rows = _read(path, column)
    columns = {str(key).lower(): key for _, row in rows for key in row if key != name}
    label = next((columns[n] for n in _LABEL_NAMES if n in columns), None)
    if label is None:
        maybe = (columns[n] for n in _LABEL_NAMES_IF_KNOWN if n in columns)
        label = next((k for k in maybe if all(_plain(r, k) in _LABELS for _, r in rows)), None)
    source, level = columns.get("source"), columns.get("level")
    more = [key for key in columns.values() if key and key not in (label, source, level)]
    prompts = []
    for where, row in rows:
        if (given := _plain(row, label)) not in _LABELS:
            raise ValueError(f"{where}: unknown label {given!r:.40}; choose {_allowed()}")
        others = {key: _text(row, key) for key in more}
        known = _text(row, source).strip(), _level(_text(row, level), where)
        prompts.append(Case(row[name], _LABELS[given], *known, others=others))
    if more:
        warnings.warn(
            f"{path}: carried as they are: {', '.join(map(repr, more))}; columns that are read: "
            f"{name}, label, source, level",
            stacklevel=2,
        )
    return prompts


def read_cases(path: str | Path, *, column: str | None = None) -> list[Case]:
    """The different prompts of a file, with their labels and sources (`read_labelled`).

    Blank prompts, empty rows and repeats of a prompt are left out (`distinct`), with a warning that
    counts them; what one line of a prompt leaves open, another may say.

    Raises:
        ValueError: one prompt with two labels, only blank ones, or as `read_labelled`.
    """
    lines = read_labelled(path, column=column)
    places = distinct([line.condition for line in lines])
    labels: dict[str, str] = {}
    for line in lines:
        prompt, label = line.condition.strip(), line.verdict
        if label is not None and labels.setdefault(prompt, label) != label and prompt:
            raise ValueError(
                f"{path}: {prompt[:60]!r} is labelled {labels[prompt]} and {label}; a prompt has "
                "one label"
            )
    blank = sum(not line.condition.strip() for line in lines)
    repeated = len(lines) - blank - len(places)
    for count, one, many in ((blank, "blank", "blank"), (repeated, "a repeat", "repeats")):
        if count:
            told = f"prompt is {one} and was" if count == 1 else f"prompts are {many} and were"
            warnings.warn(f"{path}: {count} {told} left out", stacklevel=2)
    if not places:
        raise ValueError(f"{path} holds only blank prompts, which tell nothing of a model's memory")
    kept = [lines[place] for place in places]
    return [dataclasses.replace(c, verdict=labels.get(c.condition.strip())) for c in kept]


def read_files(path: str | Path) -> list[tuple[str, str]]:
    """Prompts, and the files that a table or objects name beside them in `file`.

    Raises:
        FileNotFoundError, ValueError: as `read_prompts`; or a file is not named.
    """
    name, rows = _read(Path(path), None, empty_rows=False)
    column = next(iter(_called("file", rows[0][1], Path(path))), None)
    for where, row in rows:
        if not _text(row, column):
            raise ValueError(f"{where}: 'file' is missing; name an image beside every {name}")
    return [(row[name], _text(row, column)) for _, row in rows]


def distinct(prompts: Sequence[str]) -> list[int]:
    """Places of the prompts that count: the first of each text, and none that is blank.

    A prompt that stands there twice gives the same values twice, which are one observation.  The
    blank prompt is the condition of the unconditional score: its differences are 0 whatever the
    model remembers.

    >>> distinct(["a cat", "", "a dog", "a cat "])
    [0, 2]
    """
    first: dict[str, int] = {}
    for place, prompt in enumerate(prompts):
        if text := prompt.strip():
            first.setdefault(text, place)
    return list(first.values())


def has_columns(path: str | Path) -> bool:
    """Whether a file's name says that it is a table or JSON, not a prompt on each line."""
    return Path(path).suffix.lower() in (*_TABLES, *_JSON)


def _text(row: dict[str, Any], column: str | None) -> str:
    value = None if column is None else row.get(column)
    return "" if value is None else str(value)


def _level(text: str, where: str) -> int:
    """How often images were repeated; tables write whole numbers with a point at times."""
    whole = re.fullmatch(r"\+?(\d{1,15})(\.0*)?", text.strip() or "0")
    if whole is None:
        raise ValueError(
            f"{where}: 'level' must be how often the images were repeated, a whole number, got "
            f"{text!r:.40}; give that, or the column another name"
        )
    return int(whole[1])


def _plain(row: dict[str, Any], column: str | None) -> str:
    """A label as the table of labels has it."""
    return _text(row, column).strip().lower()


def _allowed() -> str:
    return "; ".join(
        verdict + (f" (or {', '.join(others)})" if others else "")
        for verdict, others in _MEANINGS.items()
    )


def _read(path: Path, column: str | None, *, empty_rows: bool = True) -> tuple[str, list[_Row]]:
    """The name of the column of prompts, and the rows, each with a text there."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no file of prompts {path}: it {'is a directory' if path.is_dir() else 'is missing'}"
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start}: {error.reason}); save it as UTF-8, in "
            "Excel as 'CSV UTF-8'"
        ) from error
    # not splitlines: it also splits at characters that a prompt may hold
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if path.suffix.lower() in _TABLES:
        name, rows = _from_table(lines, path, column)
        if not empty_rows:  # of one column each is a prompt
            rows = [(at, r) for at, r in rows if len(r) == 1 or any(v.strip() for v in r.values())]
    elif has_columns(path):
        rows = list(_from_json(lines, path))
        name = _column_of(rows[0][1], column, path) if rows else _PROMPT
    else:
        if column is not None:
            raise ValueError(f"{path} is text, a prompt on each line: leave --column out")
        name = _PROMPT
        rows = [(str(path), {name: line.strip()}) for line in lines if line.strip()]
        if rows and (what := _looks_like(rows[0][1][name])):
            warnings.warn(
                f"{path} is read as text, a prompt on each line, and its first looks like {what}",
                stacklevel=3,
            )
    if not rows:
        raise ValueError(f"{path} holds no prompt")
    for where, row in rows:
        if name not in row:
            raise ValueError(f"{where}: {name!r} is missing; give every prompt under that name")
        if row[name] is None:
            row[name] = ""
        if not isinstance(row[name], str):
            raise ValueError(f"{where}: {name!r} must be a text, got {row[name]!r:.80}")
    return name, rows


def _looks_like(line: str) -> str:
    """What a file whose name says that it is text looks like by its first line, if not like it."""
    if line.startswith(("[", '{"')):
        return "JSON: let its name end in .json"
    names = [cell.strip(' "').lower() for cell in re.split("[,;\t]", line)]
    is_table = len(names) > 1 and not {_PROMPT, "caption"}.isdisjoint(names)
    return "the columns of a table: let its name end in .csv or .tsv" if is_table else ""


def _column_of(columns: Sequence[str] | dict[str, Any], wanted: str | None, path: Path) -> str:
    """Which of the columns holds the prompts."""
    for name in _NAMES if wanted is None else (wanted.strip(),):
        exact = [one for one in columns if one == wanted]
        if found := exact or _called(name, columns, path):
            return found[0]
    looked = "prompt, caption or text" if wanted is None else repr(wanted)
    raise ValueError(
        f"{path} has no column {looked}; its columns are {', '.join(map(repr, columns))}. Name "
        "that of the prompts by --column NAME (column=NAME in Python)"
    )


def _called(name: str, columns: Sequence[str] | dict[str, Any], path: Path) -> list[str]:
    """The column of this name, in any case, if it is there; two of them contradict each other."""
    found = [one for one in columns if one.lower() == name.lower()]
    if len(found) > 1:
        raise ValueError(f"{path} must have one column {name!r}, and has {len(found)}")
    return found


def _from_table(lines: list[str], path: Path, column: str | None) -> tuple[str, list[_Row]]:
    """By the separator under which the column of prompts is there and no row has cells too many."""
    told = re.fullmatch(r'"?sep=(.)"?', lines[0], re.IGNORECASE)  # Excel's
    separators: Sequence[str] = (told[1],) if told else _SEPARATORS
    if path.suffix.lower() == ".tsv" and not told:
        separators = sorted(separators, key="\t".__ne__)
    best: tuple[int, str, list[_Row], str] | None = None
    errors = []
    for separator in separators:
        try:
            columns, rows, misfit = _parse(lines, path, separator, skip=1 if told else 0)
            if not columns:
                return _PROMPT, []
            name = _column_of(columns, column, path)
            for other in (*_LABEL_NAMES, "source", "level"):
                _called(other, columns, path)
        except ValueError as error:
            errors.append((separator in lines[0], error))
            continue
        if best is None or (not misfit, len(columns)) > (not best[3], best[0]):
            best = len(columns), name, rows, misfit
    if best is None:  # of the separator that the first line has
        raise max(errors, key=lambda one: one[0])[1]
    if best[3]:
        raise ValueError(best[3])
    return best[1], best[2]


def _parse(
    lines: list[str], path: Path, separator: str, *, skip: int
) -> tuple[list[str], list[_Row], str]:
    """Names of the columns, rows, and what is wrong if one has cells beyond the columns."""
    reader = csv.reader((f"{line}\n" for line in lines[skip:]), delimiter=separator, strict=True)
    columns: list[str] = []
    rows, misfit = [], ""
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num + skip}"
            is_empty = not any(cell.strip() for cell in cells)
            if not columns:
                columns = [] if is_empty else [name.strip() for name in cells]
            elif is_empty and len(columns) > 1:
                rows += [(where, dict.fromkeys(columns, ""))] if cells else []
            elif cells:
                if any(cell.strip() for cell in cells[len(columns) :]):
                    misfit = misfit or (
                        f"{where} has {len(cells)} cells, and {len(columns)} columns are named; "
                        f"put quotes about a cell that holds {separator!r}"
                    )
                rows.append((where, dict(zip(columns, cells, strict=False))))
    except csv.Error as error:
        line = reader.line_num + skip
        raise ValueError(f"{path}, line {line} is not valid CSV: {error}") from error
    return columns, rows, misfit


def _from_json(lines: list[str], path: Path) -> Iterator[_Row]:
    """Of an array, or of the values of lines; a text alone is a prompt."""
    first = next((line for line in lines if line.strip()), "")
    entries: Iterator[tuple[str, Any]]
    if first.lstrip().startswith("["):
        array = _loads("\n".join(lines), str(path))
        entries = ((f"{path}, entry {number}", one) for number, one in enumerate(array, 1))
    else:
        places = ((f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip())
        entries = ((where, _loads(line, where)) for where, line in places)
    for where, entry in entries:
        if not isinstance(entry, dict | str):
            raise ValueError(
                f"{where} must be an object with a text {_PROMPT!r}, or a text, got {entry!r:.80}"
            )
        row = {_PROMPT: entry} if isinstance(entry, str) else entry
        yield where, {str(key).strip(): value for key, value in row.items()}


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where} is not valid JSON: {error}; a file of prompts is an array, or has an object "
            "on each line"
        ) from error


def balanced(cases: Sequence[Case]) -> list[Case]:
    """At most 60 memorized cases, evenly over their levels, and 20 clean ones of each source.

    Clean ones that were planted as memorized, and did not become so, are left out.  The choice is
    spread over the list and always the same.
    """
    memorized = [case for case in cases if case.verdict == "memorized"]
    levels = sorted({case.level for case in memorized})
    groups = [[case for case in memorized if case.level == level] for level in levels]
    chosen: list[Case] = []
    # the smallest groups first, so that what they lack is shared by the others
    for left, group in zip(range(len(groups), 0, -1), sorted(groups, key=len), strict=True):
        chosen += spread(group, (NUM_MEMORIZED - len(chosen)) // left)
    sources = dict.fromkeys(case.source for case in cases if case.verdict == "clean")
    for source in sources:
        if source != "memorized":
            clean = [c for c in cases if c.verdict == "clean" and c.source == source]
            chosen += spread(clean, NUM_CLEAN)
    return [case for case in cases if case in chosen]


def spread(cases: Sequence[Case], count: int) -> list[Case]:
    """At most `count` of them, evenly over the list."""
    if len(cases) <= count:
        return list(cases)
    step = (len(cases) - 1) / max(count - 1, 1)
    return [cases[round(i * step)] for i in range(count)]
