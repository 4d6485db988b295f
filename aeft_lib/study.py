"""What a study is: a question, and the rows that answer it."""

from dataclasses import dataclass

from aeft_lib.rows import AnyRow


@dataclass(frozen=True)
class Study:
    """A question and the rows that answer it.

    common: the row whose best threshold is tried on every row (columns ``*_common``), so that precision and recall can be
        compared without a threshold that follows the row.
    long: too many rows for a first reproduction on two cores (see `Profile.long_from`).
    most_seeds: how many seeds a reproduction gives it, whatever it was asked for; 0 is no bound.
    first: rows that are begun first, because they have nothing in common and need not wait for each other's parts.
    least_seeds: how many seeds a reproduction gives it at least, for intervals that say something.
    on_collages: its rows turn knobs of collages; where scenes are photos the committed table is shown.
    committed: the study whose committed table has its rows; "" is its own.
    """

    name: str
    question: str
    rows: tuple[AnyRow, ...]
    common: str | None = None
    long: bool = False
    most_seeds: int = 0
    first: tuple[str, ...] = ()
    least_seeds: int = 0
    on_collages: bool = False
    committed: str = ""

    def seeds(self, asked: int) -> range:
        """The seeds of a reproduction that was asked for so many."""
        return range(max(self.least_seeds, min(asked, self.most_seeds or asked)))

    def row(self, name: str) -> AnyRow:
        """Raises ValueError naming the rows there are."""
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"study {self.name} has no row {name!r}; there are {', '.join(r.name for r in self.rows)}")
