"""Every data set by its spec: the one place that knows all of them."""

from functools import lru_cache

from aeft_lib.data.coco import Coco, CocoSpec
from aeft_lib.data.collages import Collages, SceneSpec
from aeft_lib.data.controlled import ControlledCollages, ControlledSpec
from aeft_lib.data.folder import Folder, FolderSpec
from aeft_lib.data.scene import Scenes
from aeft_lib.data.voc import Voc, VocSpec

AnySpec = SceneSpec | ControlledSpec | VocSpec | CocoSpec | FolderSpec
READERS = {
    SceneSpec: Collages,
    ControlledSpec: ControlledCollages,
    VocSpec: Voc,
    CocoSpec: Coco,
    FolderSpec: Folder,
}


@lru_cache(maxsize=8)
def open_scenes(spec: AnySpec) -> Scenes:
    """The scenes of a spec.  Raises ValueError where the data is missing or damaged, with what to do."""
    if type(spec) not in READERS:
        raise ValueError(f"no data set has the spec {spec!r}")
    return READERS[type(spec)](spec)
