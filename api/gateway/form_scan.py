"""Finds the field `model` of a multipart form while it arrives (RFC 7578). Pure; buffers only a part's head.

Linear in the form's size: each byte is scanned once, and per call a boundary's length of them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from enum import Enum, auto

_MAX_LINE = 1024  # bytes after a boundary, up to the line's end
_MAX_HEAD = 16 * 1024  # bytes of a part's headers
_MAX_VALUE = 1024  # bytes of a model's name
_MAX_PARTS = 2000
_MAX_BOUNDARY = 256
_PLAIN_ENCODINGS = frozenset({"", "7bit", "8bit", "binary"})
_UTF8_AND_SUBSETS = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


class InvalidForm(Exception):
    """The form can't be parsed, so its model is unknown; the message says why."""


@dataclass(frozen=True, slots=True)
class FormField:
    """A field's value, and the offsets of its bytes in the form."""

    value: str
    start: int
    end: int


class _State(Enum):
    CONTENT = auto()  # of a part other than `model`, or the preamble
    LINE = auto()  # the rest of a boundary's line
    HEAD = auto()
    VALUE = auto()  # of the field `model`
    END = auto()  # after the last boundary


class FormScanner:
    """`model` is the first field of this name, None until it is found."""

    def __init__(self, content_type: bytes) -> None:
        """Raises InvalidForm."""
        self.model: FormField | None = None
        self._delimiter = b"\r\n--" + _boundary(content_type)
        self._state = _State.CONTENT
        self._buffer = bytearray(b"\r\n")  # the first boundary may stand at the very beginning
        self._num_parts = 0
        self._offset = -2  # of the buffer's first byte in the form

    @property
    def is_complete(self) -> bool:
        return self._state is _State.END

    def feed(self, data: bytes) -> None:
        """Scan the next bytes. Raises InvalidForm, also if a second `model` differs from the first."""
        if self._state is _State.END:
            return
        searched = max(0, len(self._buffer) - len(self._delimiter))
        self._buffer += data
        while self._step(searched):
            searched = 0

    def _step(self, searched: int) -> bool:
        """Advance one state; False if more bytes are needed. `searched`: bytes known to hold no delimiter."""
        match self._state:
            case _State.CONTENT:
                return self._skip_content(searched)
            case _State.LINE:
                return self._end_line()
            case _State.HEAD:
                return self._read_head(searched)
            case _State.VALUE:
                return self._read_value(searched)
            case _State.END:
                self._drop(len(self._buffer))
                return False

    def _skip_content(self, searched: int) -> bool:
        found = self._buffer.find(self._delimiter, searched)
        if found < 0:
            self._drop(max(0, len(self._buffer) - len(self._delimiter) + 1))
            return False
        self._enter(_State.LINE, found + len(self._delimiter))
        return True

    def _end_line(self) -> bool:
        if self._buffer.startswith(b"--"):
            self._enter(_State.END, 2)
            return True
        found = self._buffer.find(b"\r\n", 0, _MAX_LINE)
        if found < 0:
            self._limit(_MAX_LINE, "a boundary's line")
            return False
        if self._buffer[:found].strip(b" \t"):  # the boundary is only the prefix of another line
            self._enter(_State.CONTENT, 0)
            return True
        self._enter(_State.HEAD, found)  # with the line's end: a part may have no headers
        return True

    def _read_head(self, searched: int) -> bool:
        found = self._buffer.find(b"\r\n\r\n", searched)
        if found < 0 or found > _MAX_HEAD:
            self._limit(_MAX_HEAD, "a part's headers")
            return False
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise InvalidForm(f"it has more than {_MAX_PARTS} parts, the limit")
        is_model = _is_model(bytes(self._buffer[2 : found + 2]))
        # The last line break may also precede the boundary, if the part has no content.
        self._enter(_State.VALUE if is_model else _State.CONTENT, found + 2)
        return True

    def _read_value(self, searched: int) -> bool:
        found = self._buffer.find(self._delimiter, searched)
        if found < 0 or found > _MAX_VALUE:
            self._limit(_MAX_VALUE, "the model's name")
            return False
        start, raw = self._offset + 2, bytes(self._buffer[2:found])
        try:
            field = FormField(raw.decode(), start, start + len(raw))
        except UnicodeDecodeError:
            raise InvalidForm("the model's name must be UTF-8") from None
        if self.model is not None and self.model.value != field.value:
            raise InvalidForm(
                f"model is given more than once, as {self.model.value!r} and as {field.value!r}; name one"
            )
        self.model = self.model or field
        self._enter(_State.LINE, found + len(self._delimiter))
        return True

    def _enter(self, state: _State, num_consumed: int) -> None:
        self._state = state
        self._drop(num_consumed)

    def _drop(self, num_bytes: int) -> None:
        del self._buffer[:num_bytes]
        self._offset += num_bytes

    def _limit(self, most: int, what: str) -> None:
        if len(self._buffer) > most:
            raise InvalidForm(f"more than {most} bytes in {what}")


def _boundary(content_type: bytes) -> bytes:
    value = _parameter("content-type", content_type.decode("latin-1"), "boundary")
    if not value or len(value) > _MAX_BOUNDARY:
        raise InvalidForm("its Content-Type has no valid `boundary` parameter")
    return value.encode("latin-1", "replace")


def _is_model(head: bytes) -> bool:
    """Whether a part is the field `model`. Raises InvalidForm if it is, but not as plain text."""
    headers = _headers(head.decode("utf-8", "replace"))
    disposition = headers.get("content-disposition", "")
    if _parameter("content-disposition", disposition, "name") != "model":
        return False
    if _parameter("content-disposition", disposition, "filename") is not None:
        raise InvalidForm("model must be a text field, not a file")
    charset = _parameter("content-type", headers.get("content-type", ""), "charset")
    if charset is not None and charset.lower() not in _UTF8_AND_SUBSETS:
        raise InvalidForm(f"the model's name must be UTF-8, not {charset}")
    if headers.get("content-transfer-encoding", "").lower() not in _PLAIN_ENCODINGS:
        raise InvalidForm("the model's name must not have a transfer encoding")
    return True


def _headers(head: str) -> dict[str, str]:
    """A part's headers by lower-case name; continued lines are joined."""
    found: dict[str, str] = {}
    name = ""
    for line in head.split("\r\n"):
        if line[:1] in (" ", "\t"):
            if name:
                found[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if colon:
            found[name] = value.strip()
        else:
            name = ""
    return found


def _parameter(header: str, value: str, name: str) -> str | None:
    """One parameter of a header's value, quoted or not, or in the form of RFC 2231."""
    message = Message()
    message[header] = value.replace("\r", " ").replace("\n", " ")
    found = message.get_param(name, header=header)
    if isinstance(found, tuple):
        charset, _, text = found
        try:
            return text.encode("latin-1", "replace").decode(charset or "utf-8", "replace")
        except LookupError:
            return text
    return found
