"""Losses that are finite, but tell of a training that does not go well."""

from __future__ import annotations

from collections import deque
from statistics import fmean, median

# A spike: the median of so many steps is above that of those before by so many of
# their spreads, by a tenth of it, and by a quarter of what had been gained since the
# start. Single losses are far above where batches are small: they are no spike.
_SHORT, _LONG, _FEWEST = 10, 100, 30
_SPREADS, _PART, _OF_GAIN = 4.0, 0.1, 0.25
# After so many steps a loss that moved by less than one in 200, or by less than one and
# a half standard errors, does not move.
_STEPS, _THIRD, _MOVED, _ERRORS = 300, 100, 0.005, 1.5


class LossWatch:
    """Warns once of a spike, and once of a loss that does not move.

    Attributes:
        well: the training starts from a fitted head: little may be left to gain.
    """

    well = False

    def __init__(self) -> None:
        self.begin(resumed=False)

    def begin(self, resumed: bool) -> None:
        """Start anew; how a run that is ``resumed`` began is not known."""
        self.recent: deque[float] = deque(maxlen=_LONG)
        self.newest: deque[float] = deque(maxlen=_SHORT)
        self.first: list[float] = []
        self.steps, self.resumed = 0, resumed
        self.spiked = False

    def add(self, loss: float, step: int) -> str:
        """Take the loss of a step; return what to say of it, once, or ""."""
        self.steps += 1
        if len(self.first) < _THIRD:
            self.first.append(loss)
        if len(self.newest) == _SHORT:
            self.recent.append(self.newest[0])
        self.newest.append(loss)
        return self._spike(step) or self._stuck(step)

    def _spike(self, step: int) -> str:
        if self.spiked or len(self.recent) < _FEWEST:
            return ""
        usual, now = median(self.recent), median(self.newest)
        spread = 1.4826 * median(abs(loss - usual) for loss in self.recent)
        gained = median(self.first[:_FEWEST]) - usual
        least = max(_SPREADS * spread, _PART * abs(usual), _OF_GAIN * gained)
        if now - usual <= least:
            return ""
        self.spiked = True
        return (
            f"the loss rose at step {step:,}: {now:.3g} in the median of {_SHORT}"
            f" steps, {usual:.3g} in that of the {len(self.recent)} before; a lower"
            " learning_rate, more warmup_steps or a smaller max_grad_norm helps where"
            " it does not come down again"
        )

    def _stuck(self, step: int) -> str:
        if self.steps != _STEPS or self.resumed or self.well:
            return ""
        last = [*self.recent, *self.newest][-_THIRD:]
        before, now = fmean(self.first), fmean(last)
        spread = sum((x - before) ** 2 for x in self.first)
        spread += sum((x - now) ** 2 for x in last)
        error = (spread / (2 * _THIRD - 2) * 2 / _THIRD) ** 0.5
        if abs(before - now) > max(_MOVED * abs(before), _ERRORS * error):
            return ""
        return (
            f"the loss does not move: {before:.4g} in the mean of the first {_THIRD}"
            f" steps, {now:.4g} in that of the last {_THIRD} (step {step:,}); a higher"
            " learning_rate may help, or another model; see that the labels fit the"
            " texts, and that what should train is not frozen"
        )
