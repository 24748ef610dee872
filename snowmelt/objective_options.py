"""Options of what is learned. Nothing here imports torch, so that `--help` is immediate."""

from dataclasses import dataclass

from snowmelt.config import Config, option

SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
COUPLINGS = ("independent", "ot", "nearest")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


@dataclass(kw_only=True)
class ObjectiveOptions(Config):
    """Objective."""

    objective: str | None = option(None, "named objective; 'epsilon' when only the ddpm flags below are given")
    prediction_type: str | None = option(
        None, "what a discrete-time network predicts", choices=("epsilon", "sample", "v_prediction")
    )
    ddpm_num_steps: int | None = option(
        None, "timesteps of the discrete forward process (1000)", minimum=2, maximum=100_000
    )
    ddpm_beta_schedule: str | None = option(None, "betas of the discrete forward process", choices=SCHEDULES)
    ddpm_beta_start: float | None = option(
        None, "the first beta of linear, scaled_linear and sigmoid ones (0.0001)", above=0, below=1
    )
    ddpm_beta_end: float | None = option(None, "the last beta of these (0.02)", above=0, below=1)
    variance_type: str | None = option(
        None, "variance of ddpm's steps; learned_range is learned (Nichol & Dhariwal 2021)", choices=VARIANCES
    )
    vlb_weight: float | None = option(
        None, "weight of the variational bound that a learned variance is trained by (0.001)", minimum=0, maximum=1
    )
    rescale_betas_zero_snr: bool = option(False, "rescale the betas to zero terminal SNR (Lin et al. 2024)")
    loss_weight: str | None = option(None, "weight on the loss: unit, snr, min_snr, soft_min_snr, p2, edm, or vlb")
    snr_gamma: float | None = option(
        None, "gamma of the min_snr and soft_min_snr weights (5); alone, it chooses min_snr", above=0
    )
    timestep_sampling: str | None = option(
        None,
        "distribution of training timesteps; loss_second_moment is importance sampling (Nichol & Dhariwal 2021)",
        choices=("uniform", "logit_normal", "beta", "log_normal", "log_normal_wide", "loss_second_moment"),
    )
    low_discrepancy: bool = option(False, "stratify the times over the batch (Kingma et al. 2021, appendix I.1)")
    coupling: str = option(
        "independent",
        "noise of each image: any, ot by minibatch optimal transport (Tong et al. 2023), or the nearest of four",
        choices=COUPLINGS,
    )
    contrastive_weight: float = option(
        0.0,
        "of the distance from another image's target, in conditional flow matching (Stoica et al. 2025); 0.05, say",
        minimum=0,
        below=1,
    )
    noise_offset: float = option(
        0.0, "std of noise that is the same all over a channel, added to the noise", minimum=0, maximum=10
    )
    input_perturbation: float = option(
        0.0, "std of noise that the network sees but isn't asked for (Ning et al. 2023)", minimum=0, maximum=10
    )
    flow_fraction: float | None = option(
        None, "of flow maps (soflow, meanflow), fraction of a batch that is flow matching (0.5)", minimum=0, maximum=1
    )
    adaptive_power: float | None = option(
        None, "of flow maps, power p of weights 1 / (error + 0.01)^p (1) (Geng et al. 2025)", minimum=0, maximum=2
    )
    dream_training: bool = option(
        False, "add the network's error to the noise: one more forward pass a step (Zhou et al. 2024)"
    )
    dream_detail_preservation: float = option(
        1.0, "power of the noise level in --dream_training: larger ones keep more detail", minimum=0, maximum=100
    )
