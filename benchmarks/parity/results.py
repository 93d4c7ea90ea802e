"""One measured difference, and the bound that the harness promises."""

from __future__ import annotations

from dataclasses import dataclass

ASPECTS = {
    # aspect: (what is measured, bound)
    "parameters": ("number of parameters, difference", 0.0),
    "logits in float32": ("evaluation mode, against float64, largest difference / largest logit", 1e-4),
    "logits in float64": ("largest difference / largest logit", 1e-9),
    "loss in float64": ("relative difference", 1e-9),
    "gradients in float64": ("norm of the difference / norm of the gradient, worst parameter", 1e-9),
    "statistics in float64": ("buffers after a training step, norm of the difference / norm, worst buffer", 1e-9),
    "initialisation": ("mean and standard deviation, in standard errors, worst parameter", 5.0),
    "learning rate": ("largest difference", 1e-9),
    "augmentation, pixels": ("largest difference of uint8 values", 0.0),
    "augmentation, labels": ("pixels that differ", 0.0),
    "augmentation, normalised": ("largest difference", 2e-6),
    "inference, scores": ("largest difference / largest score", 1e-5),
    "inference, argmax": ("share of pixels that differ, ties left out", 0.0),
    "metrics": ("largest difference of IoU, accuracy and means", 1e-12),
    "training, loss curve": ("largest relative difference", 1e-9),
    "training, learning rate": ("largest difference", 1e-9),
    "training, weights": ("norm of the difference / norm, worst parameter or buffer at the end", 1e-9),
}
"""The bounds hold for every order of summation, that is on every processor and with every kernel.

*Logits in float32*: a sum of n products, one after another, has a relative error of about sqrt(n / 6) u, u = 2^-24
(errors of random sign; kernels that add in blocks or lanes have less). The longest sum of a ResNet has n = 4608:
1.7e-6. Errors of a hundred layers of this length add up as their squares do: 1.7e-5; the worst of some thousand
logits is at four to five standard deviations, and the largest logit, which it is divided by, at three to four: 3e-5.
In evaluation mode nothing can make more of it: there are no kinks in a forward pass, and the norms divide by
constants. (In training mode DRANet normalises over two values, which amplifies by up to 316, 1 over the root of the
norm's epsilon.)

*In float64*: the same with u = 2^-53 is 1e-13; twenty training steps let it grow a thousandfold.

*Inference*: the networks run in float64; around them, our inputs and scores are float32 and each the result of a few
operations, which leaves some 1e-7.
"""


@dataclass(frozen=True)
class Result:
    """A case's largest difference in one aspect."""

    source: str
    aspect: str
    case: str
    measured: float
    against: str
    note: str = ""
    bound: float | None = None

    @property
    def limit(self) -> float:
        """The bound that applies."""
        return ASPECTS[self.aspect][1] if self.bound is None else self.bound

    @property
    def passed(self) -> bool:
        """Whether the bound holds; NaN does not."""
        return self.measured <= self.limit
