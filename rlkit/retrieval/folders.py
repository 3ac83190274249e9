"""Folders of what was built: complete under their names or not there, safe with several processes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from rlkit.errors import DataError

__all__ = ["complete"]


def complete(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder` with everything in it; `build` fills it where it is not there.

    Raises `DataError` where files are missing or torn; the folder is then removed, so that the next run builds it.
    """
    if (folder / "manifest.json").is_file():
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size if (folder / name).is_file() else -1 for name in manifest}
        if sizes == manifest:
            return folder
        shutil.rmtree(folder)
        raise DataError(f"{folder}: the cached index is broken and was removed; run again")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        draft = Path(scratch, "index")
        draft.mkdir()
        build(draft)
        written = {str(file.relative_to(draft)): file.stat().st_size for file in draft.rglob("*") if file.is_file()}
        (draft / "manifest.json").write_text(json.dumps(written), encoding="utf-8")
        try:
            draft.rename(folder)  # appears complete or not at all
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    return folder
