"""What test_ranks.py starts under torchrun: one row on drawn photos, on every rank."""

import os
import sys
from dataclasses import replace

from photo_profile import photo_profile

from aeft_lib.engine import ranks, shards
from aeft_lib.stages.psa import Psa
from aeft_lib.studies import catalogue, pipeline

SLOWER = 0.02  # of the rates: differences of rounding are in proportion to them from 0.1 down
REFINED = {"refiner": Psa(crf=True), "scored_on": "train", "keep_epochs": False}
ROW = replace(catalogue.OURS_ROW, name="crf", label="ours, CRF", **REFINED)


def main() -> None:
    """Run the row with the negatives that the command line names; rank 0 prints its mIoU."""
    ranks.start()
    shards.SHARD = 5  # three shards of twelve images, so that both ranks get some
    profile = photo_profile()
    profile = replace(profile, compute=replace(profile.compute, negatives=sys.argv[1]))
    # At the profile's own rates the loss rises, and a step amplifies rounding a hundredfold.
    slow, erasing = profile.schedule, profile.erasing
    slow = replace(slow, lr=SLOWER * slow.lr, head_lr=SLOWER * slow.head_lr)
    erasing = replace(erasing, rate=SLOWER * erasing.rate)
    profile = replace(profile, schedule=slow, erasing=erasing)
    made = pipeline.artefacts(profile, ROW, 0)
    if ranks.is_main():
        miou = made["evaluation"].summary["miou"]
        print(f"ranks {ranks.world()} miou {miou!r} runs {os.environ['AEFT_RUNS']}")
    ranks.stop()


if __name__ == "__main__":
    main()
