"""Rows of methods that begin with a GAP classifier: AdvCAM and RIB read it otherwise, CDA pastes.

AdvCAM and RIB read the classifier that GAP has; what they are compared with is that classifier read
plainly, the ReLU first, as they merge: row ``psa_seed``.  CDA trains a second classifier, with
GAP's pseudo-labels; its claim is an interaction with context, which the study `pasting` asks.
"""

from dataclasses import replace

from aeft_lib.rivals.advcam import AdvCam
from aeft_lib.rivals.cda import Pasting
from aeft_lib.rivals.rib import Rib
from aeft_lib.studies import levels
from aeft_lib.studies.conditions import CONDITIONS, condition_row
from aeft_lib.studies.rival import BASE, PSA, Rival, ends
from aeft_lib.studies.rows import GAP, Logged, Row, Study
from aeft_lib.studies.settings import Setting

CONTEXTS = (levels.BASE, "context_1")  # no background is tied to a class, and every one


def _read_by(name: str, label: str, reader: AdvCam | Rib, published: str | None = None) -> Row:
    """GAP's classifier, read image by image."""
    mechanisms = (Logged(reader.names, of="seeds"),)
    fields = {"reader": reader, "mechanisms": mechanisms, "published": published}
    return replace(GAP, name=name, label=label, **fields)


def _pasted(
    name: str, label: str, composer: Pasting, published: str | None = None, **fields: Setting
) -> Row:
    """A second classifier, on scenes with objects from GAP's label maps.  fields: of both rows."""
    teacher = replace(ends(BASE, PSA)[0], **fields)
    mechanisms = (Logged(("instances", "classes_without", "instance_share")),)
    made = {"composed_by": (composer, teacher), "mechanisms": mechanisms, "published": published}
    return replace(GAP, name=name, label=label, **made, **fields)


ADVCAM = _read_by("advcam", "AdvCAM", AdvCam(), "rival.advcam.seed")
RIB = _read_by("rib", "RIB", Rib(), "rival.rib.seed")
CDA = _pasted("cda", "CDA", Pasting(), "rival.cda.seed")
RIVALS = (
    Rival(
        ADVCAM,
        ablations=(
            _read_by("advcam_no_mask", "AdvCAM, no mask term", AdvCam(weight=0.0)),
            _read_by("advcam_absent", "AdvCAM, absent classes alone", AdvCam(suppress="absent")),
        ),
    ),
    Rival(
        RIB,
        ablations=(
            _read_by("rib_gap", "RIB, no GNDP", Rib(pooling="gap")),
            _read_by("rib_bce", "RIB, with the sigmoid", Rib(pooling="gap", loss="bce")),
        ),
    ),
    Rival(
        CDA,
        passes=3.0,  # GAP's, and a second training on twice as many scenes
        ablations=(_pasted("cda_release", "CDA, the release's", Pasting(dilated=True)),),
    ),
)


def _in_context(level: str) -> tuple[Row, Row]:
    """GAP and CDA at a level of the controlled collages."""
    setting = Setting(CONDITIONS[level])
    return condition_row(level, "gap"), _pasted(
        f"{level}.cda", f"CDA, {level}", Pasting(), setting=setting
    )


PASTING = Study(
    "pasting",
    "Does pasting objects on other backgrounds help where backgrounds are tied to classes, and "
    "only there?",
    tuple(row for level in CONTEXTS for row in _in_context(level)),
    long=True,
    needs="collages",
    apart=True,
)
