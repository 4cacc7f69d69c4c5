"""The folder of a data set, as the first thing that a stage looks at."""

from pathlib import Path

from medssl.exit_codes import BadInputError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")


def check_root(root: Path) -> None:
    """Refuse what is no folder that can be entered; an archive is never unpacked here.

    Raises:
        BadInputError: With the remedy, and without the path.
    """
    try:
        if root.is_dir():
            return
        is_file = root.is_file()
    except OSError as error:  # its own text holds the path
        raise BadInputError(f"data.root cannot be entered ({error.strerror}); give a folder that can be read") from None
    if is_file and root.name.lower().endswith(ARCHIVES):
        raise BadInputError("data.root is an archive; unpack it, and give the folder that contains the data set")
    raise BadInputError("data.root is no folder that exists; give the folder that contains the data set")
