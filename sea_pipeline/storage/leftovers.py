"""Recognise files that systems, file servers and editors leave in folders.

They are neither the user's files nor ours.
"""

import re
from functools import lru_cache
from pathlib import Path

LEFTOVERS = "files that systems and programs leave behind"
"""The name of these files in messages that count them."""

_NAMES = (
    # macOS: AppleDouble files, Finder, Spotlight, Time Machine, archives, netatalk
    r"\._.+|\.DS_Store|Icon\r|\.localized|\.VolumeIcon\.icns|\.apdisk|\.com\.apple\..+|\.Spotlight-V100|\.Trashes",
    r"\.fseventsd|\.TemporaryItems|\.DocumentRevisions-V100|__MACOSX|\.AppleDouble|\.AppleDB|\.AppleDesktop",
    # Windows
    r"(eh)?thumbs(_vista)?\.db|desktop\.ini|\$RECYCLE\.BIN|System Volume Information",
    # Linux: file systems, network file systems, desktops
    r"lost\+found|\.nfs[0-9a-f]{8,}|\.fuse_hidden.*|\.smbdelete.*|\.Trash(-\d+)?|\.directory|\.goutputstream-.+",
    r"\.snapshots?|\.zfs",
    # Synology and QNAP
    r"@eaDir|#recycle|#snapshot|@Recycle|@Recently-Snapshot|\.@__thumb",
    # Spark and Hadoop
    r"_temporary|_SUCCESS|_(committed|started)_\d+|.+_\$folder\$|\..+\.crc",
    # git, Jupyter, rsync, and editors: vim, emacs, office
    r"\.gitkeep|\.keep|\.gitignore|\.gitattributes|\.ipynb_checkpoints|\.~tmp~",
    r".+~|\..+\.sw[a-z]|\.#.+|#.+#|~\$.+|\.~lock\..+#",
)
_LEFTOVER = re.compile("|".join(_NAMES), re.IGNORECASE | re.DOTALL)


def is_leftover(name: str) -> bool:
    """Tell whether a file was left behind by a program, or lies in a folder that was.

    Args:
        name: the file's path, with slashes.
    """
    folder, _, last = name.rpartition("/")
    return _is_one(last) or (bool(folder) and _lies_in_one(folder))


def files_like(folder: Path, *patterns: str) -> list[Path]:
    """List the files of a folder that match a pattern, sorted by path and without leftovers."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if not is_leftover(path.name)})


@lru_cache(maxsize=4096)
def _lies_in_one(folder: str) -> bool:
    return any(map(_is_one, folder.split("/")))


def _is_one(part: str) -> bool:
    return _LEFTOVER.fullmatch(part) is not None
