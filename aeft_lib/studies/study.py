"""What a study is: a question, and the rows that answer it."""

from dataclasses import dataclass

from aeft_lib.studies.rows import AnyRow
from aeft_lib.studies.settings import Profile


@dataclass(frozen=True)
class Study:
    """A question and the rows that answer it.

    common: the row whose best threshold is tried on every row (columns ``*_common``), so that precision and recall can be
        compared without a threshold that follows the row.
    long: too many rows for a first reproduction on two cores (see `Profile.long_from`).
    most_seeds: how many seeds a reproduction gives it, whatever it was asked for; 0 is no bound.
    first: rows that are begun first, because they have nothing in common and need not wait for each other's parts.
    needs: "collages" (whose knobs its rows turn) or "photos"; on the other kind of scenes the committed table is shown.
    committed: the study whose committed table has its rows; "" is its own.
    """

    name: str
    question: str
    rows: tuple[AnyRow, ...]
    common: str | None = None
    long: bool = False
    most_seeds: int = 0
    first: tuple[str, ...] = ()
    needs: str = ""
    committed: str = ""

    def seeds(self, asked: int) -> range:
        """The seeds of a reproduction that was asked for so many."""
        return range(min(asked, self.most_seeds or asked))

    def fits(self, profile: Profile) -> bool:
        """Whether its rows can be computed on the scenes of a profile."""
        return not self.needs or (self.needs == "collages") == (profile.controlled is not None)

    def row(self, name: str) -> AnyRow:
        """Raises ValueError naming the rows there are."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"study {self.name} has no row {name!r}; there are {', '.join(r.name for r in self.rows)}")
