"""How active an adapter is over a whole data set: running moments by site and kind of token, in constant memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from llm_adapters_lab.core.injection import Injection
from llm_adapters_lab.core.weights import device as device_of
from llm_adapters_lab.errors import NoView
from llm_adapters_lab.inspection.recorder import Recorder
from llm_adapters_lab.inspection.recording import Moments
from llm_adapters_lab.tasks.tokens import IGNORED

KINDS = ("prompt", "answer", "control")


@dataclass(frozen=True)
class Activity:
    """Moments of ‖c‖ / ‖y‖ at one site over the tokens of one kind.

    Attributes:
        count: number of tokens n.
        mean: over them; NaN without tokens.
        std: standard deviation with n - 1; NaN for fewer than two tokens.
    """

    count: int
    mean: float
    std: float


class ActivityMoments:
    """Running moments of ‖c‖ / ‖y‖ at each site, with c what the adapter adds to the output y of the base.

    Moments of blocks are merged exactly, see `recording.Moments`. Tokens at which y is zero are left out.

    Attributes:
        rows: number of rows so far.
    """

    def __init__(self, injection: Injection, control: Collection[int] = ()) -> None:
        """Start without rows.

        Args:
            injection: the adapters.
            control: ids of control tokens, which are a kind of their own.

        Raises:
            NoView: the adapter adds nothing at a site.
        """
        self.injection, self.control, self.rows = injection, torch.tensor(sorted(control), dtype=torch.long), 0
        self._moments: dict[tuple[str, str], Moments] = {}
        if not injection.sites:
            raise NoView(f"{injection.config.type!r} acts on the whole model and adds nothing at a site.")
        self._keys = [key for key in self._recorder() if key in injection.sites]

    @torch.no_grad()
    def add(self, ids: torch.Tensor, labels: torch.Tensor) -> None:
        """Run the model on a row, and add its tokens.

        Args:
            ids: token ids, (tokens,).
            labels: one for each token; `IGNORED` in the prompt, anything else in the answer.
        """
        model = self.injection.model
        with self._recorder() as seen:
            model(input_ids=ids[None].to(device_of(model)), use_cache=False)
        is_control = torch.isin(ids.cpu(), self.control)
        answer = (labels.cpu() != IGNORED) & ~is_control
        masks = {"prompt": ~answer & ~is_control, "answer": answer, "control": is_control}
        for key in self._keys:
            found = seen[key]
            added, base = found.contributions[self.injection.name][0], found.base[0]
            share = (added.double().norm(dim=-1) / base.double().norm(dim=-1))[-len(ids) :].cpu()
            for kind, mask in masks.items():
                values = share[mask & share.isfinite()]
                self._moments.setdefault((key, kind), Moments("covariance")).add(values[:, None])
        self.rows += 1

    def table(self) -> dict[str, dict[str, Activity]]:
        """Return the moments so far, by site key and kind of token ("prompt", "answer", "control")."""
        result: dict[str, dict[str, Activity]] = {}
        for (key, kind), moments in self._moments.items():
            n, nan = moments.count, float("nan")
            mean, std = float(moments.mean) if n else nan, float(moments.value().sqrt()) if n > 1 else nan
            result.setdefault(key, {})[kind] = Activity(n, mean, std)
        return result

    def _recorder(self) -> Recorder:
        return Recorder(self.injection.model, what=("base", "contributions"), device="cpu")
