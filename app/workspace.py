"""The folders that the browser interface works on, and the ids by which a page names what lies in them.

A page never sends a path: it sends an id, which is compared with a listing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from app.runlist import changed_at
from engine.data.builtin import BUILT_IN, folder_of
from engine.data.manifest import MANIFEST, read_manifest
from engine.errors import ConfigError, DataError
from engine.words import counted

ON_HUB = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
TITLES = {
    "python-stdlib": "Python API finder, standard library",
    "python-api": "Python API finder, installed packages",
}


@dataclass(frozen=True)
class Workspace:
    """runs: folder of the runs · datasets: folder in which every dataset directory is a dataset · encoders: folder in
    which every folder with a Hugging Face model is an encoder.
    """

    runs: Path
    datasets: Path
    encoders: Path = Path("encoders")

    @property
    def jobs(self) -> Path:
        """Folder of the commands that the interface started, see `app.jobs`."""
        return self.runs / ".jobs"

    def dataset_ids(self) -> list[str]:
        """Of the built-in corpora, made or not, and of the datasets in the folder, by name."""
        found = []
        if self.datasets.is_dir():
            found = sorted(p.name for p in self.datasets.iterdir() if (p / MANIFEST).is_file())
        return [*TITLES, *(id for id in found if id not in BUILT_IN)]

    def dataset_choices(self) -> list[tuple[str, str]]:
        """(text, id) of every dataset."""
        return [(self._title(id), id) for id in self.dataset_ids()]

    def dataset_path(self, id: str) -> Path:
        """The dataset directory of that id; a built-in corpus may not be made yet. Raises ConfigError."""
        if id not in self.dataset_ids():
            raise ConfigError("this dataset is not there any more; choose another")
        return folder_of(id) if id in BUILT_IN else self.datasets / id

    def dataset_stamp(self, id: str) -> int:
        """Another number when the dataset becomes another; 0 while there is none."""
        return changed_at(self.dataset_path(id) / MANIFEST) if id in self.dataset_ids() else 0

    def data_path(self, id: str) -> str:
        """What `data.path` has to be for that dataset. Raises ConfigError."""
        path = self.dataset_path(id)
        return id if id in BUILT_IN else str(path)

    def label_count(self, id: str) -> int | None:
        """Labels of a dataset; None for a built-in corpus that is not made yet. Raises ConfigError."""
        return _labels(self.dataset_path(id))

    def encoder(self, id: str) -> str:
        """What `encoder.name` has to be for one of the encoders in the folder, or for a name on the hub.

        Raises ConfigError for what is neither: a page names no other folder.
        """
        if self.encoders.is_dir() and id in {p.parent.name for p in self.encoders.glob("*/config.json")}:
            return str(self.encoders / id)
        if not ON_HUB.fullmatch(id) or Path(id).exists():
            raise ConfigError(
                f"{id} is no name of a model; a model of your own is chosen by the name of its folder in "
                f"{self.encoders.resolve()}"
            )
        return id

    def _title(self, id: str) -> str:
        labels = _labels(self.dataset_path(id))
        return TITLES.get(id, id) + (f" ({counted(labels, 'label')})" if labels is not None else "")


def _labels(path: Path) -> int | None:
    try:
        return read_manifest(path)[0]["n_labels"]
    except DataError:
        return None
