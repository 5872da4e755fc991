"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file to write, which takes its place at the end in one step.

    A reader sees the old file or the new one, never a part. An error inside, or Ctrl-C, leaves the old one. What is no
    file, as a pipe, is written as it is.

    Parameters
    ----------
    path : path-like
        Through a symbolic link, as `open` goes.
    mode : "w" or "wb"
        Text or bytes.
    **options
        For `open`: encoding and newline of text.

    Raises
    ------
    OSError
        If it cannot be written; with the name of `path`.
    """
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():  # a device is written, not replaced; a directory raises
            with open(target, mode, **options) as stream:
                yield stream
            return
        temporary = target.with_name(f".softmax_xp-{secrets.token_hex(8)}")
        try:
            with open(temporary, mode.replace("w", "x"), **options) as stream:  # with the permissions of any new file
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C too
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
