"""What `test_pretend_gpu` runs on a pretended GPU: steps, whole rows, faults; prints JSON.

Started with the variables of `pretend_gpu.environment`; the store is ``AEFT_RUNS``.
"""

import json
from collections.abc import Callable
from dataclasses import replace

import torch
from evening_profile import evening_profile
from pretend_gpu import Pretend
from torch import Tensor, nn

from aeft_lib.data.collages import SceneSpec
from aeft_lib.engine.device import device
from aeft_lib.engine.samples import Batch
from aeft_lib.engine.schedule import make_optimiser
from aeft_lib.engine.step import PLAIN, Compute, Objective, Stepper
from aeft_lib.networks.efficientnet_lite import EfficientNetLiteSpec
from aeft_lib.rivals.occse import OcCse
from aeft_lib.studies import catalogue
from aeft_lib.studies.pipeline import artefacts
from aeft_lib.studies.profiles import EVENING, SMOKE

K, B, SIDE = 3, 4, 64
BACKBONE = EfficientNetLiteSpec(weights="none", trained_stages=1)
METHODS = {row.name: row.method for row in (catalogue.GAP, catalogue.GATED)}
METHODS |= {"soft": catalogue.SOFT, "rigid": catalogue.RIGID, "occse": OcCse()}
# Every method in float32; what differs by precision and by parts does so for all of them alike.
STEPS = {name: (name, PLAIN) for name in METHODS}
STEPS |= {
    "bf16": ("soft", Compute("bf16", parts=2, checkpointing=True)),
    "fp16": ("soft", Compute("fp16")),
}
FAULTS: dict[str, Callable[[Tensor], Tensor]] = {
    "mixed": lambda logits: logits + torch.zeros(logits.shape),
    "wait": lambda logits: logits * max(1.0, logits.sum().item() * 0),
    "no kernel": lambda logits: logits + 0 * torch.histogram(logits.detach(), 4).hist.sum(),
}
# A row that takes every kind of stage, at the smallest sizes; without lookahead, since a dispatch
# mode belongs to one thread.
PROFILE = replace(
    SMOKE,
    train=SceneSpec("train", 8, 96),
    val=SceneSpec("val", 4, 96),
    schedule=replace(SMOKE.schedule, epochs=1),
    erasing=replace(SMOKE.erasing, epochs=1, batch_size=8),
)
ROW = "segment_aeft"
# A training on random views of new scenes, with its curve; without lookahead too.
VIEWS = evening_profile(
    val=SceneSpec("val", 2, 64),
    backbone=BACKBONE,
    schedule=replace(EVENING.schedule, epochs=4, batch_size=4, steps_per_epoch=1),
    compute=PLAIN,
)


def batch() -> Batch:
    """Random images, tags and noise, on the CPU."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(B, 3, SIDE, SIDE, generator=generator)
    tags = torch.eye(K, dtype=torch.bool)[[0, 1, 2, 0]]
    return Batch(images=images, tags=tags, noise=torch.rand(B, B, generator=generator))


def step(method, compute: Compute, fault: Callable[[Tensor], Tensor] | None = None) -> None:
    """Build a method's network and take one step, named "step" as every step is."""
    method = method.fitted(SIDE // BACKBONE.stride)
    network = method.build(BACKBONE.build(), K).train()
    network.backbone.checkpointing = compute.checkpointing
    network = network.to(device())
    judge = catalogue.GAP.method.build(BACKBONE.build(), K).eval().requires_grad_(False)
    options = {"oc": judge.to(device())} if isinstance(method, OcCse) else {}

    def measure(network: nn.Module, samples: Batch) -> dict[str, Tensor]:
        measures = method.measure(network, samples, **options)
        return measures | ({"logits": fault(measures["logits"])} if fault else {})

    stepper = Stepper(
        network,
        make_optimiser(network, SMOKE.schedule),
        Objective(measure, method.combine),
        compute,
    )
    stepper.step(batch())


def name_steps(log: Pretend) -> None:
    """Let what happens within any step be written down under "step: " and the phase it is in."""
    whole = Stepper.step

    def named(stepper: Stepper, *inputs, **options) -> dict[str, Tensor]:
        with log.named(f"step: {log.phase}"):
            return whole(stepper, *inputs, **options)

    Stepper.step = named


def main() -> None:
    log, errors = Pretend(), {}
    name_steps(log)
    with log:
        for name, (method, compute) in STEPS.items():
            with log.named(name):
                step(METHODS[method], compute)
        for name, fault in FAULTS.items():
            with log.named(f"fault {name}"):
                try:
                    step(catalogue.GAP.method, PLAIN, fault)
                except RuntimeError as error:
                    errors[name] = str(error)
        row = next(r for s in catalogue.STUDIES.values() for r in s.rows if r.name == ROW)
        with log.named("row"):
            made = artefacts(PROFILE, row, 0)
        with log.named("views"):
            artefacts(VIEWS, catalogue.GATED, 0)
    events = {kind: [[*at, n] for at, n in counts.items()] for kind, counts in log.events.items()}
    summary = made["evaluation"].summary
    answer = {"events": events, "operations": log.operations, "errors": errors, "row": summary}
    answer["convolutions"] = {phase: sorted(types) for phase, types in log.convolutions.items()}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
