"""Rows and studies as data: what stands in one line of a table, and the question it answers.

Below them the methods that several studies compare.  `pipeline` goes from a row to its numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from aeft_lib.data.scene import SceneSet
from aeft_lib.networks.segmenter import LargeFov
from aeft_lib.paper.classifier import Classification
from aeft_lib.paper.gpp import Gap, Pyramid
from aeft_lib.paper.triplet import CORRECTED, REFERENCE, Triplet
from aeft_lib.stages.artefact import Artefact
from aeft_lib.stages.composer import Composer
from aeft_lib.stages.image_reader import ImageReader
from aeft_lib.stages.labeller import Labeller
from aeft_lib.stages.map_source import MapSource
from aeft_lib.stages.method import Method, Reader, Refiner, Segmenter
from aeft_lib.stages.reading import MultiScale
from aeft_lib.studies.names import unknown
from aeft_lib.studies.settings import AS_PROFILED, OPTIMISER_QUIRKS, Profile, Setting


@dataclass(frozen=True)
class Prediction:
    """How a segmentation network is read.

    crf: a dense CRF on its predictions.  tags_known: an oracle takes absent classes away.
    """

    crf: bool = False
    tags_known: bool = False


PLAIN = Prediction()


class Mechanism(Protocol):
    """What a method claims to do, as numbers of a trained classifier that need no mask.

    names: of the numbers.
    """

    names: tuple[str, ...]

    def measure(
        self,
        obtain: Callable[..., Artefact],
        scenes: SceneSet,
        classifier: Artefact,
        precision: str,
    ) -> Artefact:
        """An artefact whose summary has the numbers."""


@dataclass(frozen=True)
class Logged:
    """Numbers in the summary of a part that the row made: nothing is left to measure.

    names: those that it lacks are left out of the row.
    part: its name (`pipeline.products`): the "classifier", which logs means over its last epoch,
        "seeds", whose reader logs means over the images, "labels" and what else a refiner makes, or
        the "segmenter".
    """

    names: tuple[str, ...]
    part: str = "classifier"


@dataclass(frozen=True)
class Row:
    """One way from tags to numbers; its last part is its end.

    A method alone ends in seeds; with a refiner, in pseudo-labels; with a segmenter, in predictions
    of a network that learned from them.

    label: as the poster prints it.  method: trains the classifier; None: a segmenter learns from
        the true masks, the fully supervised ceiling.
    starts_from: the row whose classifier is the warm start of a second phase.
    judges: trained classifiers that the method asks, by name.
    taught_by: who labels the training scenes by the classifier of which row; such a row may itself
        be taught, which makes rounds.
    reads: what maps the training reads beside the images, made by the classifier of which row; this
        makes rounds too.
    composed_by: who composes further training scenes from the label maps of which row, which ends
        in those of the training scenes.
    mechanisms: measured on the scored scenes where the row ends in seeds, or logged by its parts.
    as_long_as: a method, or its passes a step: the row trains for at least as many in all.
    scored_on: the split whose scenes the end is scored on.
    published: the id of its number in published.toml.
    setting: changes of the profile.  keep_epochs: evaluate after every epoch of the last phase.
    """

    name: str
    label: str
    method: Method | None
    starts_from: "Row | None" = None
    reader: Reader | ImageReader = MultiScale()
    refiner: Refiner | None = None
    segmenter: Segmenter | None = None
    prediction: Prediction = PLAIN
    judges: tuple[tuple[str, "Row"], ...] = ()
    taught_by: "tuple[Labeller, Row] | None" = None
    reads: "tuple[MapSource, Row] | None" = None
    composed_by: "tuple[Composer, Row] | None" = None
    mechanisms: tuple[Mechanism | Logged, ...] = field(
        default=(), compare=False
    )  # the same row without
    as_long_as: Method | float = 1.0
    scored_on: str = "scored"
    published: str | None = None
    setting: Setting = AS_PROFILED
    keep_epochs: bool = False

    def __post_init__(self) -> None:
        if self.taught_by and self.reads:
            both = "taught by a labeller and reads maps"
            raise ValueError(f"row {self.name} is {both}: a training takes one of them")


@dataclass(frozen=True)
class Study:
    """A question and the rows that answer it.

    common: the row whose best threshold is tried on every row (columns ``*_common``), so that
        precision and recall can be compared without a threshold that follows the row.
    long: too many rows for a first reproduction on two cores (see `Profile.long_from`).
    most_repeats: how many a reproduction gives it, whatever it was asked for; 0 is no bound.
    needs: "collages" (whose knobs its rows turn), "photos", or "curves" over the steps
        (`Profile.curve`); on a profile without them the committed table is shown.
    committed: the study whose committed table has its rows; "" is its own.
    apart: more rows than any reproduction has time for; `aeft run` computes them, one by one or
        all, and a notebook shows those that store or committed table have.
    """

    name: str
    question: str
    rows: tuple[Row, ...]
    common: str | None = None
    long: bool = False
    most_repeats: int = 0
    needs: str = ""
    committed: str = ""
    apart: bool = False

    def repeats(self, asked: int) -> range:
        """The repeats of a reproduction that was asked for so many."""
        return range(min(asked, self.most_repeats or asked))

    def fits(self, profile: Profile) -> bool:
        """Whether its rows can be computed on the scenes of a profile."""
        if self.needs == "curves":
            return profile.curve > 0
        return not self.needs or (self.needs == "collages") == (profile.controlled is not None)

    def row(self, name: str) -> Row:
        """The row of this name.  Raises ValueError naming the rows there are."""
        for row in self.rows:
            if row.name == name:
                return row
        names = [row.name for row in self.rows]
        raise unknown(f"study {self.name} has no row {name!r}", name, names)


# The poster's second table has the reference's triplet with a detached mask: a gradient through the
# mask doubles the cost of a step, and what it does is a row of the quirks.
SOFT_REPEL = replace(REFERENCE, mask_gradient=False)
OFF = replace(SOFT_REPEL, attract="off", repel_weight=0.0)
SOFT = replace(SOFT_REPEL, repel_weight=0.0)
RIGID = replace(SOFT, attract="rigid")
# The fair baseline: same optimiser, same samples.
NOTHING_ADDED = replace(CORRECTED, attract="off", repel_weight=0.0)


def passes_of(method: Method | float, profile: Profile) -> float:
    """Passes of a step through the classifier, against plain classification's, on a profile."""
    if isinstance(method, int | float):
        return method
    return getattr(method.fitted(profile.map_side), "passes", 1.0)


def classified(name: str, label: str, pooling: Gap | Pyramid, **fields: Any) -> Row:
    """A classifier trained on tags alone, with this pooling layer.  fields: of `Row`."""
    return Row(name, label, Classification(pooling), **fields)


GAP = classified("gap", "GAP", Gap(), published="known.gap_seed")
GATED = classified("gated", "G", Pyramid(), published="table1.G")


def second(
    name: str,
    label: str,
    method: Triplet,
    *,
    quirks: tuple[str, ...] = OPTIMISER_QUIRKS,
    setting: Setting = AS_PROFILED,
    **fields: Any,
) -> Row:
    """A second phase from the gated classifier, by default with the reference's optimiser.

    quirks: of the optimiser.  fields: of `Row`.
    """
    setting = replace(setting, phase=(("quirks", quirks), *setting.phase))
    return Row(name, label, method, starts_from=GATED, setting=setting, **fields)


def segmented(name: str, label: str, teacher: Row, prediction: Prediction = PLAIN) -> Row:
    """A network that learned from a row's label maps, on unseen scenes."""
    changes = {"segmenter": LargeFov(), "prediction": prediction, "scored_on": "val"}
    changes |= {"published": None, "mechanisms": ()}  # the teacher's parts are not its own
    return replace(teacher, name=name, label=label, **changes)


SEGMENT_TRUTH = segmented("segment_truth", "true masks", Row("truth", "true masks", None))


def probe(method: Method) -> Triplet | None:
    """The attraction whose embeddings are followed over the steps of a method; None without a GPP.

    A method that attracts softly is followed under its own mask, others under the paper's; norms
    are left as they are, so that shrinking shows.
    """
    if not isinstance(getattr(method, "pooling", None), Pyramid):
        return None
    soft = isinstance(method, Triplet) and method.attract == "soft"
    own = ("keep", "erase_threshold", "space") if soft else ()
    return replace(SOFT, **{name: getattr(method, name) for name in own})
