"""Values that options refuse, before anything is read."""

import itertools

import pytest

from tests.hostile.conftest import Refuse

# Should one of them not be refused, it ends soon.
U, T, A = (f"train_{name}.py --max_train_steps 1 " for name in ("unconditional", "text2img", "autoencoder"))
G, E, P = "generate.py --model m ", "evaluate.py --model m ", "publish.py "
PROBABILITY = "must be at least 0 and less than 1, got"
POSITIVE = "must be more than 0, got"

NUMBERS = {
    "adam_beta1": PROBABILITY,
    "adam_beta2": PROBABILITY,
    "sgd_momentum": PROBABILITY,
    "contrastive_weight": PROBABILITY,
    "label_dropout": PROBABILITY,
    "validation_share": PROBABILITY,
    "ema_max_decay": PROBABILITY,
    "learning_rate": "must be at least 0, got",
    "adam_weight_decay": "must be at least 0 and at most 1, got",
    "adam_epsilon": "must be more than 0 and at most 1, got",
    "max_grad_norm": POSITIVE,
    "ema_inv_gamma": POSITIVE,
    "ema_power": POSITIVE,
    "snr_gamma": POSITIVE,
    "max_train_minutes": POSITIVE,
    "noise_offset": "must be at least 0 and at most 10, got",
    "input_perturbation": "must be at least 0 and at most 10, got",
    "ema_widths": "must be more than 0 and at most 0.288, got",
}
COUNTS = ("train_batch_size", "eval_batch_size", "num_epochs", "max_train_steps", "checkpointing_steps")

CASES = [
    *(
        (f"{U}--{name}={value}", f"^error: --{name}: {line} ")
        for name, line in NUMBERS.items()
        for value in ("nan", "-1")
    ),
    *((f"{U}--{name} inf", f"^error: --{name}: {line} inf$") for name, line in itertools.islice(NUMBERS.items(), 8)),
    *((f"{U}--{name} 0", f"^error: --{name}: must be at least 1, got 0$") for name in COUNTS),
    *((f"{U}--{name} 1.5", f"^error: argument --{name}: invalid int value: '1.5'") for name in COUNTS[:2]),
    (U + "--resolution 64x", "^error: --resolution: must be a whole number, or HEIGHTxWIDTH such as 64x96, got '64x'$"),
    (U + "--resolution 0x8", "^error: --resolution: must be at least 1, got 0$"),
    (U + "--resolution ٦٤x٩٦", "^error: --resolution: must be a whole number, or HEIGHTxWIDTH"),
    (U + "--aspect_ratio_buckets 64x96", "^error: --aspect_ratio_buckets 64x96: must be sizes HEIGHT,WIDTH, such as"),
    (U + "--aspect_ratio_buckets 64,96", "^error: --resolution 16: is that of samples; take one of the sizes 64,96$"),
    (
        U + "--streaming --dataset_name digits",
        "^error: --streaming: digits comes with the project, and is in memory; leave",
    ),
    (
        U + "--streaming --autoencoder a",
        "^error: --streaming: isn't for --autoencoder, which would encode each image again and again; run encode.py ",
    ),
    (
        U + "--streaming --eval_steps 1 --eval_metrics fd",
        "^error: --streaming: isn't for --eval_metrics, which needs all",
    ),
    (U + "--streaming --condition column:map", "^error: --streaming: isn't for --condition column:map, a second image"),
    (U + "--streaming --shuffle_buffer_size 0", "^error: --shuffle_buffer_size: must be at least 1, got 0$"),
    (
        T + "--streaming",
        "^error: --streaming: isn't for captions, which are read before training; run encode.py --stre",
    ),
    (A + "--streaming", "^error: --streaming: isn't for autoencoders, whose latents are measured on all images; leave"),
    (U + "--seed=-1", "^error: --seed: must be at least 0 and at most 9223372036854775807, got -1$"),
    (U + "--seed 99999999999999999999", "^error: --seed: must be at least 0 and at most"),
    (U + "--seed 1_000", "^error: argument --seed: invalid int value: '1_000'"),
    (U + "--seed ٣", "^error: argument --seed: invalid int value: '٣'"),
    (U + "--seed 0x10", "^error: argument --seed: invalid int value: '0x10'"),
    (U + "--seed", "^error: argument --seed: expected one argument"),
    (U + "--learning_rate 1e999", "^error: --learning_rate: must be at least 0, got inf$"),
    (T + "--objective ve", "^error: --objective ve: is for train_unconditional.py; take another"),
    (U + "--learning_rate fast", "^error: argument --learning_rate: invalid float value: 'fast'"),
    (U + "--learning_rate 1,5", "^error: argument --learning_rate: invalid float value: '1,5'"),
    (U + "--ddpm_num_steps 1", "^error: --ddpm_num_steps: must be at least 2 and at most 100000, got 1$"),
    (U + "--ddpm_num_steps 1000000000", "^error: --ddpm_num_steps: must be at least 2 and at most 100000"),
    (U + "--objective flow --variance_type learned_range", "^error: --variance_type is for discrete-time objectives"),
    (U + "--objective epsilon --vlb_weight 0.1", "^error: --vlb_weight: .*; add --variance_type learned_range$"),
    (U + "--objective flow --loss_weight vlb", "^error: --loss_weight vlb: flow has no variational bound of T steps"),
    (
        U + "--objective flow --timestep_sampling loss_second_moment",
        "^error: --timestep_sampling loss_second_moment: is for T timesteps; take epsilon, ",
    ),
    (U + "--objective v --ddpm_beta_end 0.1", "^error: --ddpm_beta_end: cosine betas have none; add --ddpm_beta_sch"),
    (
        U + "--objective epsilon --ddpm_beta_start 0.03",
        "^error: --ddpm_beta_start 0.03: must be less than --ddpm_beta_end, 0.02$",
    ),
    (U + "--ddpm_beta_end 1", "^error: --ddpm_beta_end: must be more than 0 and less than 1, got 1.0$"),
    (U + "--objective v --coupling ot", "^error: --coupling ot: makes straight paths, and v has others; take flow"),
    (U + "--objective vp --backbone dit", "^error: --backbone dit: vp is for --backbone unet alone"),
    (U + "--variance_type learned", "^error: argument --variance_type: invalid choice: 'learned'"),
    (
        U + "--logging_dir ../..",
        r"^error: --logging_dir \.\./\.\.: must be a folder inside --output_dir",
    ),
    (
        U + "--logging_dir /tmp/logs",
        "^error: --logging_dir /tmp/logs: must be a folder inside --output_dir",
    ),
    (U + "--logging_dir logs/../../x", "must be a folder inside --output_dir"),
    (U + "--output_dir ''", "^error: --output_dir: is empty; give text, or leave it out$"),
    (U + "--train_data_dir ''", "^error: --train_data_dir: is empty; give text, or leave it out$"),
    (U + "--hub_token ''", "^error: --hub_token: is empty; give text, or leave it out$"),
    (U + "--reflow_steps 5", "^error: --reflow_steps: needs --reflow_from$"),
    (
        U + "--reflow_from m --random_flip",
        "^error: --random_flip: is not for the pairs of --reflow_from; leave it out$",
    ),
    (U + "--reflow_from m --objective v", "^error: --objective v: --reflow_from straightens flows; take flow or mix"),
    (U + "--reflow_from m --reflow_guidance_scale nan", "^error: --reflow_guidance_scale: must be at least 0 and"),
    (
        U + "--no-class_conditional --contrastive_weight 0.05",
        "^error: --contrastive_weight: tells conditions apart; add",
    ),
    (U + "--class_conditional --contrastive_weight 0.05 --train_batch_size 1", "^error: --contrastive_weight: needs a"),
    (T + "--contrastive_weight 0.05 --train_batch_size 1", "^error: --contrastive_weight: needs a --train_batch_size"),
    (
        U + "--class_conditional --contrastive_weight 0.05 --objective mixture",
        "^error: --contrastive_weight: is for a velocity, and mixture predicts another thing; take flow$",
    ),
    (A + "--equivariance_prob 1.5", "^error: --equivariance_prob: must be at least 0 and at most 1, got 1.5$"),
    (A + "--equivariance_prob nan", "^error: --equivariance_prob: must be at least 0 and at most 1, got nan$"),
    (U + "--use_8bit_adam --optimizer muon", "^error: --use_8bit_adam: is AdamW; drop it, or --optimizer muon$"),
    (U + "--optimizer lion", "^error: argument --optimizer: invalid choice: 'lion'"),
    (U + "--lr_scheduler cosin", "^error: argument --lr_scheduler: invalid choice: 'cosin'"),
    (U + "--mixed_precision fp8", "^error: argument --mixed_precision: invalid choice: 'fp8'"),
    (U + "--logger file", "^error: argument --logger/--report_to: invalid choice: 'file'"),
    (U + "--prediction_type flow", "^error: argument --prediction_type: invalid choice: 'flow'"),
    (U + "--zzz", "^error: unknown flag --zzz; --help lists all$"),
    (U + "--resolutoin 32", "^error: unknown flag --resolutoin; did you mean --resolution"),
    (U + "--resol 32", "^error: unknown flag --resol; did you mean --resolution"),
    (U + "--learning-rate 1e-4", "^error: unknown flag --learning-rate; did you mean --learning_rate"),
    (U + "stray", "^error: unknown flag stray; --help lists all$"),
    (U + "--patience 3", "^error: --patience: needs --eval_steps, how often to evaluate$"),
    (U + "--eval_steps 5", "^error: --eval_steps: needs --validation_share 0.05, --validation_split or --eval_metrics"),
    (
        U + "--validation_split test --validation_share 0.1",
        "^error: --validation_split and --validation_share",
    ),
    (T + "--rank 4", "^error: --rank: needs --pretrained_model_name_or_path$"),
    (T + "--pretrained_model_name_or_path no/such/place", "^error: --pretrained_model_name_or_path no/such/place: "),
    (T + "--rank 0 --pretrained_model_name_or_path m", "^error: --rank: must be at least 1, got 0$"),
    (T + "--controlnet --condition edges", "^error: --controlnet: needs --pretrained_model_name_or_path$"),
    (
        T + "--controlnet --pretrained_model_name_or_path m",
        "^error: --controlnet: needs a --condition that it is shown",
    ),
    (
        T + "--controlnet --condition edges --rank 4 --pretrained_model_name_or_path m",
        "^error: --rank: isn't for --controlnet; drop one of the two$",
    ),
    (T + "--condition edges --pretrained_model_name_or_path m", "^error: --condition: a pretrained model takes one by"),
    (G + "--controlnet_conditioning_scale=-1", "^error: --controlnet_conditioning_scale: must be at least 0 and at mo"),
    (T + "--train_text_encoder", "^error: --train_text_encoder: needs --pretrained"),
    (
        T + "--with_prior_preservation",
        "^error: --with_prior_preservation: trains on images of a class; give --class_pr",
    ),
    (
        T + "--class_prompt a",
        "^error: --class_prompt: is of --with_prior_preservation; give that too, or leave it out$",
    ),
    (T + "--instance_prompt a --caption_column text", "^error: --instance_prompt and --caption_column: each says"),
    (T + "--prior_loss_weight nan", "^error: --prior_loss_weight: must be at least 0 and at most 1000, got nan$"),
    (T + "--placeholder_token x", "^error: --placeholder_token: begins as a known word; name it by --initializer_"),
    (T + "--placeholder_token x --initializer_token a", "^error: --placeholder_token: needs --pretrained_model_name"),
    (T + "--num_vectors 65", "^error: --num_vectors: must be at least 1 and at most 64, got 65$"),
    (T + "--variant fp16", "^error: --variant: needs --pretrained_model_name_or_path$"),
    (
        T + "--pretrained_model_name_or_path m --model_size tiny",
        "^error: --model_size: that of --pretrained_model_name",
    ),
    (T + "--num_validation_images 3", "^error: --num_validation_images: needs --validation_prompts"),
    (T + "--caption_dropout 1", "^error: --caption_dropout: must be at least 0 and less than 1, got 1.0$"),
    (T + "--text_encoder_lr nan", "^error: --text_encoder_lr: must be at least 0, got nan$"),
    (T + "--vocab_size 100", "^error: --vocab_size: must be at least 514, got 100$"),
    (A + "--kl_weight=-1", r"^error: --kl_weight: must be at least 0, got -1\.0$"),
    (A + "--kl_weight nan", "^error: --kl_weight: must be at least 0, got nan$"),
    (A + "--commitment_weight=-1", "^error: --commitment_weight: must be at least 0, got"),
    (A + "--disc_weight inf", "^error: --disc_weight: must be at least 0, got inf$"),
    (A + "--downsample_factor 1", "^error: --downsample_factor: must be at least 2 and at most 16, got 1$"),
    (A + "--ema_widths 0.05 0.1", "^error: --ema_widths: takes one width here"),
    ("generate.py", "^error: --model: needed"),
    (G + "--num_images 0", "^error: --num_images: must be at least 1 and at most 10000000, got 0$"),
    (G + "--num_images 1000000000", "^error: --num_images: must be at least 1 and at most 10000000, got 1000000000$"),
    (G + "--num_inference_steps 0", "^error: --num_inference_steps: must be at least 1"),
    (G + "--batch_size=-2", "^error: --batch_size: must be at least 1, got -2$"),
    (G + "--bit_depth 12", "^error: --bit_depth: 12 is not one of 8, 16$"),
    (G + "--bit_depth 64", "^error: --bit_depth: must be at least 8 and at most 16, got 64$"),
    (G + "--guidance_scale nan", "^error: --guidance_scale: must be at least 0 and at most 1000, got nan$"),
    (G + "--guidance_scale inf", "^error: --guidance_scale: must be at least 0 and at most 1000, got inf$"),
    (G + "--guidance_interval 2 1", "^error: --guidance_interval: LO must be less than HI, got 2.0 and 1.0$"),
    (G + "--guidance_interval nan 1", "^error: --guidance_interval: must be at least 0, got nan$"),
    (G + "--guidance_interval 1", "^error: --guidance_interval: takes LO and HI, got 1 numbers$"),
    (G + "--eta 2", "^error: --eta: must be at least 0 and at most 1, got 2.0$"),
    (G + "--eta nan", "^error: --eta: must be at least 0 and at most 1, got nan$"),
    (G + "--ema 7", "^error: --ema: must be more than 0 and at most 1, got 7.0$"),
    (G + "--seed=-1", "^error: --seed: must be at least 0"),
    (G + "--torch_dtype int8", "^error: argument --torch_dtype: invalid choice: 'int8'"),
    (E + "--metrics fid", "^error: --metrics: 'fid' is not one of fd, fd_inf, kid"),
    (E + "--metrics", "^error: --metrics: none given; take some of"),
    (E + "--metrics likelihood", "^error: --metrics likelihood: is that of images not trained on"),
    (E + "--num_images 1", "^error: --num_images: must be at least 2"),
    (E + "--resolution 3", "^error: unknown flag --resolution; did you mean"),
    (P, "^error: --model: needed"),
    (P + "--model m", "^error: --hub_model_id: needed"),
    (P + "--model m --hub_model_id a/b --variant fp8", "^error: argument --variant: invalid choice: 'fp8'"),
    (P + "--model m --hub_model_id a/b --output_dir o --create_pr", "^error: --output_dir uploads nothing"),
]


@pytest.mark.parametrize(("command", "line"), CASES)
def test_refused(refuse: Refuse, command: str, line: str) -> None:
    refuse(command, line)
