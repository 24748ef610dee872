"""The optimal network for normally distributed data, in closed form."""

import numpy as np
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

MEAN, STD, SIGMA_DATA = 0.3, 0.25, 0.5


class Oracle(ModelMixin, ConfigMixin):
    """E[F | x_t] for pixels that are independent N(MEAN, STD^2).

    With x_t = alpha x0 + sigma eps, E[x0 | x_t] = MEAN + gain (x_t - alpha MEAN),
    gain = alpha STD^2 / (alpha^2 STD^2 + sigma^2).

    Args:
        family: discrete, flow or edm: how (x, t) are to be read.
        target: what it predicts.
        schedule: arguments of the DDPMScheduler that noised the data of a discrete model.
    """

    @register_to_config
    def __init__(self, family: str, target: str, schedule: dict | None = None, sample_size: int = 64) -> None:
        super().__init__()
        self.register_to_config(in_channels=1, num_class_embeds=None, sample_size=sample_size)
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        alpha2 = DDPMScheduler(**(schedule or {})).alphas_cumprod.double().clamp(min=2**-24)
        self.log_sigmas = (((1 - alpha2) / alpha2).log() / 2).numpy()

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        assert isinstance(timestep, Tensor)
        t = float(timestep.unique())  # sampled images are all at one
        x = sample.double()
        if self.config.family == "flow":
            alpha, sigma = 1 - t / 1000, t / 1000
        elif self.config.family == "discrete":
            s = float(np.exp(np.interp(t, np.arange(len(self.log_sigmas)), self.log_sigmas)))
            alpha, sigma = (1 + s**2) ** -0.5, s * (1 + s**2) ** -0.5
        else:
            alpha, sigma = 1.0, float(np.exp(4 * t))
            x = x * (sigma**2 + SIGMA_DATA**2) ** 0.5
        x0 = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma
        total = sigma**2 + SIGMA_DATA**2
        outputs = {
            "epsilon": eps,
            "sample": x0,
            "v_prediction": alpha * eps - sigma * x0,
            "flow_prediction": eps - x0,
            "edm": (x0 - SIGMA_DATA**2 / total * x) / (sigma * SIGMA_DATA * total**-0.5),
        }
        return (outputs[self.config.target].to(sample.dtype),)
