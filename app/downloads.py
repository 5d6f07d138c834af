"""Files that lie where the page must not reach, made downloadable one by one."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path

from gradio.utils import get_upload_folder


def offered(file: Path) -> str:
    """The path of `file` among those that gradio serves: a second name of it, or else a copy. The same file has the
    same one. Raises OSError."""
    key = hashlib.sha256(os.fsencode(file.absolute())).hexdigest()
    place = Path(get_upload_folder()) / key / file.name
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = place.with_name(f"{place.name}.tmp")
    with suppress(FileNotFoundError):
        fresh.unlink()
    try:
        os.link(file, fresh)
    except OSError:  # another disk, or one without such names
        shutil.copyfile(file, fresh)
    os.replace(fresh, place)
    return str(place)
