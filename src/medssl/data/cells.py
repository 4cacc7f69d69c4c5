"""CSV tables as text cells whose rows keep their numbers, so that a message can point at what is wrong.

A row is named by its number as a spreadsheet shows it: the header is row 1, and blank rows count. No message quotes a
cell that could be a path, an id or a name.
"""

import codecs
import csv
import difflib
import gzip
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from medssl.config import MAX_TABLE_BYTES
from medssl.exit_codes import BadInputError

MAX_EXAMPLES = 5
# The share of common letters (difflib) from which a text is a misspelt word of ours. From 0.6, difflib's own limit,
# "Emma" would be a misspelt "Female".
MIN_SIMILARITY = 0.8
MAX_LONGER = 2  # characters than the word of ours: "Jane No Finding" is as similar as 0.8
MIN_MISSPELT_CHARACTERS = 4  # of a word of ours; two letters as AP are part of too many names
MAX_COLUMNS = 10_000  # the widest public table of the field has about 40
MAX_HEADER_BYTES = 2**24
CHUNK_BYTES = 2**20
CLOSE_QUOTES = "cannot be parsed as comma-separated rows; close quotation marks and give the complete table"

Column = Any  # a pyarrow array; the published stubs cannot say of what


@dataclass(frozen=True)
class Cells:
    """The cells of one table.

    Attributes:
        name: File name of the table, as messages show it.
        columns: The required columns as text, trimmed; "" where a cell is blank. Rows blank throughout are left out.
        rows: Row number of each row, int64.
        num_ignored_columns: Columns beyond the required ones.
    """

    name: str
    columns: dict[str, Column]
    rows: NDArray[np.int64]
    num_ignored_columns: int

    def reject(self, wrong: Any, found: str, remedy: str) -> None:
        """Raise BadInputError if any row is wrong; `wrong` is a boolean array over the rows."""
        rows = self.rows[np.asarray(wrong, dtype=bool)]
        if rows.size:
            raise BadInputError(f"{self.name}: {found} in {count(rows.size)} ({examples(rows)}); {remedy}")

    def translate(
        self,
        column: str,
        meaning: Callable[[str], object],
        kind: Any,
        *,
        expected: str,
        words: Iterable[str] = (),
    ) -> Column:
        """The column as type `kind`, each distinct text replaced by its meaning.

        Args:
            column: Name of a required column.
            meaning: Raises KeyError or ValueError for a text that has none.
            kind: A pyarrow type.
            expected: What the column may hold, for the message.
            words: Words that the column may hold; a text that misspells one is shown.

        Raises:
            BadInputError: Some rows hold a text without a meaning.
        """
        encoded = self.columns[column].dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        meanings: list[object] = []
        is_wrong = np.zeros(len(texts), dtype=bool)
        for i, text in enumerate(texts):
            try:
                meanings.append(meaning(text))
            except (KeyError, ValueError):
                meanings.append(None)
                is_wrong[i] = True
        if is_wrong.any():
            known = tuple(words)
            shown = dict.fromkeys(_shown(texts[i], known) for i in np.flatnonzero(is_wrong)[:MAX_EXAMPLES])
            self.reject(
                is_wrong[encoded.indices.to_numpy()],
                f'column "{column}" holds {", ".join(shown)}',
                f"expected {expected}; correct or remove these rows",
            )
        return pa.array(meanings, type=kind).take(encoded.indices)


def read(
    root: Path,
    name: str,
    *,
    setting: str,
    required: Sequence[str],
    other_names: Mapping[str, str] = MappingProxyType({}),
    remedy: str = "name the columns as expected",
) -> Cells:
    """Read the required columns of a comma-separated table, `.gz` or not.

    Args:
        root: The data set's folder.
        name: The table's name below it.
        setting: The key of the study that holds the name, for the messages.
        required: Columns that must be there; any others are counted and ignored.
        other_names: What copies of the table call a required column; the result has the required name.
        remedy: What to do where one is not, for the message.

    Raises:
        BadInputError: The table is missing, no regular file, too large, damaged, empty, no UTF-8, ragged, or lacks a
            column.
    """
    label = Path(name).name
    text = _text(root, name, setting)
    header = _header(label, text)
    found_as = {c: other_names[c] if c not in header and other_names.get(c) in header else c for c in required}
    required = list(found_as.values())
    if any(column not in header for column in required):
        if any("\n" in cell for cell in header):  # more likely a quotation mark that swallowed the next rows
            raise BadInputError(f"{label} {CLOSE_QUOTES}")
        raise BadInputError(f"{label}: {_missing(required, header)}; {remedy}")
    for column in required:
        if header.count(column) > 1:
            raise BadInputError(f'{label}: column "{column}" occurs {header.count(column)} times in row 1; keep one')
    columns, rows = _parse(label, text, required)
    if not rows.size:
        raise BadInputError(f"{label} has a header but no rows; give the complete table")
    columns = {column: columns[found] for column, found in found_as.items()}
    return Cells(label, columns, rows, len(header) - len(required))


def read_header(root: Path, name: str, *, setting: str) -> list[str]:
    """Names of the columns of a table, for a reader that chooses among layouts by them; see `read`."""
    return _header(Path(name).name, _text(root, name, setting))


def _text(root: Path, name: str, setting: str) -> bytes:
    """The table's bytes, decompressed; a table that is too large is refused before it is in memory."""
    label = Path(name).name
    path = root / name
    try:
        # Asked before opening: to open a named pipe would wait for a writer.
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadInputError(f"{label} is not a regular file; give the table itself, as a .csv or .csv.gz")
        is_packed = name.endswith(".gz")
        if (_unpacked_bytes(path) if is_packed else status.st_size) <= MAX_TABLE_BYTES:
            with gzip.open(path) if is_packed else path.open("rb") as file:
                return file.read()
    except FileNotFoundError:
        raise BadInputError(f"{label} is not in the data set's folder; give its name as {setting}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise BadInputError(f"{label} is damaged: it cannot be decompressed to its end; copy it anew") from None
    except OSError as error:  # its own text holds the path
        raise BadInputError(f"{label} cannot be read: {error.strerror}; give a file that can be read") from None
    except ValueError:  # a NUL in its name
        raise BadInputError(f"{setting} is no name of a file; give that of the table") from None
    raise BadInputError(
        f"{label} has more than {MAX_TABLE_BYTES:,} bytes, decompressed; give the table of labels, or part of it"
    )


def _unpacked_bytes(path: Path) -> int:
    """What an archive holds, counted no further than it takes to know that it is too much."""
    num_bytes = 0
    with gzip.open(path) as file:
        while num_bytes <= MAX_TABLE_BYTES and (chunk := file.read(CHUNK_BYTES)):
            num_bytes += len(chunk)
    return num_bytes


def _header(name: str, text: bytes) -> list[str]:
    """Names of the columns, once the whole text is known to be UTF-8 and its rows to end where they should."""
    _check_text(name, text)
    try:
        header = next(csv.reader(_first_lines(text)), [])
    except csv.Error:  # a quotation mark that nothing closes makes a cell over csv's limit of 131072 characters
        raise BadInputError(f"{name} {CLOSE_QUOTES}") from None
    if len(header) > MAX_COLUMNS:
        raise BadInputError(
            f"{name}: row 1 has {len(header):,} columns, more than {MAX_COLUMNS:,}; give the table of labels, whose "
            "rows end in line breaks"
        )
    return header


def _first_lines(text: bytes) -> Iterator[str]:
    """The lines that may belong to row 1: more than one where a quoted cell holds a line break."""
    begin, limit = len(codecs.BOM_UTF8) if text.startswith(codecs.BOM_UTF8) else 0, min(len(text), MAX_HEADER_BYTES)
    while begin < limit:
        end = text.find(b"\n", begin, limit) + 1 or limit
        yield text[begin:end].decode(errors="ignore")  # of a character that is cut at the end
        begin = end


def _check_text(name: str, text: bytes) -> None:
    place = text.find(b"\0") if text.isascii() else _first_undecodable(text)
    if place >= 0:
        row = text.count(b"\n", 0, place) + 1
        raise BadInputError(f"{name} is not UTF-8 text (first seen in row {row}); save it as UTF-8")
    if not text[:CHUNK_BYTES].removeprefix(codecs.BOM_UTF8).strip() and not text.strip():
        raise BadInputError(f"{name} is empty; give the complete table")
    if b"\n" not in text and text.find(b"\r", 0, len(text) - 1) >= 0:
        raise BadInputError(f"{name} has lines that end in CR alone; save it with LF or CRLF at the end of each row")
    if b'"' in text and text.count(b'"') % 2:  # else the rest of the table would become part of one cell
        raise BadInputError(f"{name} {CLOSE_QUOTES}")


def _first_undecodable(text: bytes) -> int:
    """Where the first NUL or byte that is not UTF-8 lies, -1 if nowhere."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:  # in chunks, as the whole text in memory a second time takes up to four times as much
        for begin in range(0, len(text) + 1, CHUNK_BYTES):
            decoder.decode(text[begin : begin + CHUNK_BYTES], final=begin + CHUNK_BYTES > len(text))
    except UnicodeDecodeError as error:
        # The decoder counts from its rest of the chunk before.
        return begin + error.start - (len(error.object) - len(text[begin : begin + CHUNK_BYTES]))
    return text.find(b"\0")


def _missing(required: Sequence[str], header: Sequence[str]) -> str:
    missing = [column for column in required if column not in header]
    unknown = [column for column in header if column not in required]
    named = []
    for column in missing[:MAX_EXAMPLES]:
        similar = difflib.get_close_matches(column, unknown, n=1, cutoff=MIN_SIMILARITY)
        named.append(f'"{column}"' + (f' (found "{similar[0]}")' if similar and similar[0].isprintable() else ""))
    return f"row 1 lacks {len(missing)} of {len(required)} columns: {', '.join(named)}{more(len(missing))}"


def _parse(name: str, text: bytes, required: Sequence[str]) -> tuple[dict[str, Column], NDArray[np.int64]]:
    """The required columns, and the row number of each row that is not blank."""
    ragged: list[tuple[int, int, int]] = []
    blank: list[int] = []

    def invalid(row: Any) -> Literal["skip"]:
        if row.text.strip():
            ragged.append((row.number, row.actual_columns, row.expected_columns))
        else:
            blank.append(row.number)
        return "skip"

    try:
        # Rows are numbered only when one thread parses; most tables have no row whose number is asked for.
        table = None if b'"' in text else _table(text, required, invalid, use_threads=True)
        if table is None or ragged or blank:
            ragged.clear()
            blank.clear()
            table = _table(text, required, invalid, use_threads=False)
    except pa.ArrowInvalid:  # its text quotes the table
        raise BadInputError(f"{name} {CLOSE_QUOTES}") from None
    if ragged:
        number, found, expected = ragged[0]
        raise BadInputError(
            f"{name}: other than {expected} cells in {count(len(ragged))} ({examples(r[0] for r in ragged)}; row "
            f"{number} has {found}); correct these rows, and quote cells that hold a comma"
        )
    columns: dict[str, Column] = {
        column: pc.utf8_trim_whitespace(table[column].combine_chunks()) for column in required
    }
    rows = np.setdiff1d(np.arange(2, 2 + table.num_rows + len(blank)), blank, assume_unique=True)
    is_filled = np.zeros(rows.size, dtype=bool)
    for column in columns.values():
        num_bytes: Column = pc.binary_length(column)
        is_filled |= num_bytes.to_numpy() > 0
        if is_filled.all():
            return columns, rows
    mask = pa.array(is_filled)
    return {name: column.filter(mask) for name, column in columns.items()}, rows[is_filled]


def _table(
    text: bytes, required: Sequence[str], invalid: Callable[[Any], Literal["skip"]], *, use_threads: bool
) -> pa.Table:
    has_quotes = b'"' in text
    source: Any = pa.BufferReader(text)  # unlike an open file it is not copied piece by piece
    return pyarrow.csv.read_csv(
        source,
        read_options=pyarrow.csv.ReadOptions(use_threads=use_threads),
        parse_options=pyarrow.csv.ParseOptions(
            quote_char='"' if has_quotes else False,  # the parser is faster where nothing can be quoted
            newlines_in_values=has_quotes,
            ignore_empty_lines=False,  # they count as rows
            invalid_row_handler=invalid,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(required),
            column_types=dict.fromkeys(required, pa.string()),
            strings_can_be_null=False,
            check_utf8=False,  # the whole text is known to be
        ),
    )


def count(number: int) -> str:
    """`number` as "1 row" or "7 rows"."""
    return f"{number} row" if number == 1 else f"{number} rows"


def examples(rows: Iterable[int]) -> str:
    """At most five row numbers."""
    numbers = list(rows)
    return ", ".join(f"row {row}" for row in numbers[:MAX_EXAMPLES]) + more(len(numbers))


def more(number: int) -> str:
    """The sign that not all of `number` examples are shown, where that is so."""
    return ", …" if number > MAX_EXAMPLES else ""


def _shown(text: str, words: Sequence[str]) -> str:
    """A cell as a message may show it: short numbers and misspelt `words`, nothing that could be an id or a name."""
    is_number = re.fullmatch(r"[+-]?\d{1,3}(\.\d{1,3})?|nan|NaN", text)
    parts = text.casefold().split("|")  # of a list of words
    if is_number or all(any(_misspells(part, word.casefold()) for word in words) for part in parts):
        return f'"{text}"'
    return f"a text of {len(text)} characters"


def _misspells(text: str, word: str) -> bool:
    if text == word:
        return True
    is_near = len(word) >= MIN_MISSPELT_CHARACTERS and len(text) <= len(word) + MAX_LONGER
    return is_near and difflib.SequenceMatcher(a=text, b=word).ratio() >= MIN_SIMILARITY
