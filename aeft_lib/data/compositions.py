"""Collages without end: a training on views sees a composition that it has never seen.

The paper's 10,582 photos are many against its steps; some hundred collages are not, and a new one
costs nothing.  Read by index they are the collages of a `SceneSpec`.
"""

from dataclasses import dataclass

import torch

from aeft_lib.data.collages import Collages, SceneSpec
from aeft_lib.data.scene import Scene, opened


@dataclass(frozen=True)
class CompositionSpec(SceneSpec):
    """As `SceneSpec`; count: scenes of an epoch, too."""

    def open(self) -> "Compositions":
        """The scenes of this spec, kept for the process.  Raises ValueError as `Collages` does."""
        return opened(Compositions, self)


class Compositions(Collages):
    """The scenes of a `CompositionSpec`, and new ones."""

    def composed(self, generator: torch.Generator) -> Scene:
        """A scene of the same kind; the state of the generator decides which, and nothing else."""
        seed = int(torch.randint(2**62, (), generator=generator))
        drawn = SceneSpec(self.spec.split, 1, self.spec.size, seed, self.spec.context)
        return Collages(drawn, self.pack)[0]
