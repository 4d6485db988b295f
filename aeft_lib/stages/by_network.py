"""A refiner by a network: it learns label maps of another refiner, and predicts them anew.

Its predictions are smoother than what it learned from, and agree over images.  Another network may
learn from them in turn: PMM's cyclic pseudo-masks (Li et al., ICCV 2021), and the masks from which
CONTA (Zhang et al., NeurIPS 2020) takes its context.
"""

from dataclasses import dataclass

from aeft_lib.engine.fields import choice
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.method import Refiner, Segmenter, Workshop


@dataclass(frozen=True)
class ByNetwork:
    """refiner: makes the label maps of the training scenes.  segmenter: learns from them.

    tags: classes that a scene does not have are left out of its prediction; a training scene's tags
        are known.  crf: on the prediction.
    """

    refiner: Refiner
    segmenter: Segmenter
    tags: bool = True
    crf: bool = False

    def __post_init__(self) -> None:
        choice(self, tags=(False, True), crf=(False, True))

    def refine(self, workshop: Workshop, split: str) -> dict[str, Artefact]:
        """``seeds``, ``teacher`` (the refiner's label maps), ``labels``: predicted of the split.

        The network learns from the training scenes, whatever the split.
        """
        made = self.refiner.refine(workshop, "train")
        labels = workshop.predicted(
            self.segmenter, made["labels"], split, tags_known=self.tags, crf=self.crf
        )
        return {"seeds": made["seeds"], "teacher": made["labels"], "labels": labels}
