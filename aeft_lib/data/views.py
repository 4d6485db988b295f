"""What a random view of a photo is; `augment` draws it."""

from dataclasses import dataclass

from aeft_lib.engine import fields


@dataclass(frozen=True)
class ViewSpec:
    """A random view of a photo.

    crop: side of the square that is cut out, in pixels; what the photo does not fill is zero.
    long_side: the range, ends included, from which the photo's longer side is drawn before the cut;
    None leaves the photo as it is.
    jitter: brightness, contrast, saturation, hue.  jitter_probability: how often.
    """

    crop: int = 320
    long_side: tuple[int, int] | None = (256, 512)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_probability: float = 0.8

    def __post_init__(self) -> None:
        fields.whole(self, "crop", least=16)
        fields.fraction(self, "jitter_probability")
        if self.long_side is not None and not 16 <= self.long_side[0] <= self.long_side[1]:
            text = "two whole numbers in order, at least 16"
            raise ValueError(f"long_side must be {text}, got {self.long_side}")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            text = "not be negative, its hue at most 0.5"
            raise ValueError(f"jitter must {text}, got {self.jitter}")
