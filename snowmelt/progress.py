"""How far a training is, by its steps or by its minutes."""

import time

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

OUT_OF_TIME = "time limit"  # a reason to stop


class Progress:
    """How far a training is, by its steps or by its minutes, whichever ends sooner.

    Time is looked at in `measure` alone, on one process for all, and goes on between two looks at the pace since the
    beginning. So what follows from it, the learning rate above all, is the same on every process, and a run that is
    resumed continues the curve of its checkpoint.

    Attributes:
        total_steps: optimizer steps of the whole training, 1 or more.
        minutes: that it may take, resumes included; None: only its steps count.
        step: optimizer steps taken when time was last looked at.
        seconds: that had passed by then.
    """

    def __init__(self, total_steps: int, minutes: float | None) -> None:
        self.total_steps = total_steps
        self.minutes = minutes
        self.step = 0
        self.seconds = 0.0
        self._zero = time.monotonic()

    def start(self, step: int = 0, seconds: float = 0.0) -> None:
        """Let time run from here on, after so many steps that took so many seconds."""
        self.step, self.seconds = step, seconds
        self._zero = time.monotonic() - seconds

    def measure(self, step: int, accelerator: Accelerator) -> None:
        """Look at the main process's clock after this step. Every process enters."""
        seconds = [time.monotonic() - self._zero]
        if accelerator.num_processes > 1:
            broadcast_object_list(seconds)
        self.step, self.seconds = step, seconds[0]

    @property
    def end(self) -> str:
        """Where the training ends."""
        return f"step {self.total_steps}" + (f" or after {self.minutes:g} minutes" if self.minutes else "")

    @property
    def out_of_time(self) -> bool:
        """Whether the minutes are over now, by this process's clock."""
        return self.minutes is not None and time.monotonic() - self._zero > 60 * self.minutes

    def fraction(self, step: int) -> float:
        """How much of the training lies behind this step, from 0 to 1."""
        return min(1.0, max(step / self.total_steps, self._of_time(step)))

    def position(self, step: int, warmup_steps: int) -> float:
        """The step of a schedule over `total_steps` that this step stands at: further than itself where time is short.

        Args:
            step: optimizer steps taken.
            warmup_steps: at the beginning, which are counted in steps whatever time they take.
        """
        return step if step < warmup_steps else max(step, min(1.0, self._of_time(step)) * self.total_steps)

    def expected_steps(self) -> int:
        """Optimizer steps that the training comes to at its pace so far."""
        of_time = self._of_time(self.step)
        return min(self.total_steps, round(self.step / of_time)) if of_time else self.total_steps

    def _of_time(self, step: int) -> float:
        """The fraction of the minutes that has passed at this step; 0 where they don't count, or none is known yet."""
        if self.minutes is None or not self.step:
            return 0.0
        return self.seconds / (60 * self.minutes) * step / self.step
