"""What becomes of a step whose gradient isn't finite: `--on_nonfinite`."""

from torch import Tensor

from snowmelt.errors import UserError

MOST_IN_A_ROW = 10
MOST_REWINDS = 3


class NonFinite:
    """Counts steps that are skipped, and says when a run must go back to its last checkpoint.

    Args:
        mode: "stop" leaves the gradient to the meter, which ends the run at the next log line; "skip" leaves the step
            out; "rewind" goes back to the last checkpoint after `MOST_IN_A_ROW` of them.
        scales: whether the loss is scaled, as in fp16: its scaler leaves out such steps itself.

    Attributes:
        in_a_row: steps skipped without one that was taken in between.
        rewinds: how often the run went back; data and noise come in another order after each.
    """

    def __init__(self, mode: str, *, scales: bool) -> None:
        self.mode = "stop" if scales else mode
        self.in_a_row = 0
        self.rewinds = 0

    def skips(self, norm: Tensor) -> bool:
        """Whether the step of a gradient of this norm, the same on every process, is left out."""
        if self.mode == "stop":  # nothing waits for the device
            return False
        finite = bool(norm.isfinite())
        self.in_a_row = 0 if finite else self.in_a_row + 1
        return not finite

    def must_rewind(self, step: int) -> bool:
        """Whether too many steps in a row were skipped.

        Raises:
            UserError: if they were, and the run may not go back, or no further.
        """
        if self.in_a_row < MOST_IN_A_ROW:
            return False
        if self.mode == "rewind" and self.rewinds < MOST_REWINDS:
            self.in_a_row = 0
            self.rewinds += 1
            return True
        went_back = f", after going back {self.rewinds} times" if self.rewinds else ""
        raise UserError(
            f"the gradient is not finite in {self.in_a_row} steps in a row up to step {step}{went_back}: the run has "
            "diverged; start a new one with a lower --learning_rate or --max_grad_norm"
        )
