"""Encode the images of a data set with an autoencoder, and maybe their captions with a text encoder, once, into files
that train_unconditional.py and train_text2img.py read.

Under `accelerate launch` the processes share the work. After a kill the same command goes on where it was. Once all is
written, it writes the files again that have changed since.
"""

from dataclasses import replace

from snowmelt.config import parse
from snowmelt.encode_options import EncodeConfig
from snowmelt.errors import UserError, run


def main() -> None:
    config = parse(EncodeConfig)

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    import numpy as np
    import torch
    from accelerate import PartialState

    from snowmelt.data.encoding import Encoding, write_encoded
    from snowmelt.data.to_encode import load_to_encode
    from snowmelt.environment import find_launch, use_all_cores
    from snowmelt.spaces import LatentSpace, PixelSpace, load_autoencoder
    from snowmelt.text.caption_encoder import CaptionEncoder, fit_to
    from snowmelt.text.pretrained_encoder import load_text_encoder

    use_all_cores(find_launch())
    state = PartialState(cpu=not torch.accelerator.is_available())
    source, text_encoder, masked = config.pretrained_model_name_or_path, None, True
    options, flags = config, f"--autoencoder {config.autoencoder}"
    if source is None:
        vae = load_autoencoder(str(config.autoencoder))
        if config.text_encoder is not None:
            text_encoder, tokenizer = load_text_encoder(config.text_encoder)
            flags += f" --text_encoder {config.text_encoder}"
    else:
        from pipelines import TextToImagePipeline
        from snowmelt.text.finetuning import channels, open_pipeline

        pipeline = open_pipeline(config)
        vae, text_encoder, tokenizer = pipeline.vae, pipeline.text_encoder.eval(), pipeline.tokenizer
        if vae is None:
            raise UserError(f"--pretrained_model_name_or_path {source}: is a model of pixels; train on the images")
        masked = isinstance(pipeline, TextToImagePipeline)
        options, flags = replace(config, channels=channels(pipeline)), f"--pretrained_model_name_or_path {source}"

    given = {"column": config.caption_column, "skip_empty": config.skip_empty_captions}
    data = load_to_encode(options, captions=text_encoder is not None, **given)
    space = LatentSpace(vae.to(state.device), PixelSpace(data.images.value_range), flags.split()[0])
    space.channels(data.images)  # or it refuses
    dtype, captions = np.dtype("float32" if config.mixed_precision == "no" else "float16"), None
    if text_encoder is not None:
        if source is None:  # else what it pads to is part of the pipeline
            fit_to(tokenizer, text_encoder, data, config)
        captions = CaptionEncoder(tokenizer, text_encoder.to(state.device), masked=masked, dtype=dtype)
    write_encoded(
        config.output_dir,
        Encoding(data, space.to_cache, captions, config.random_flip, dtype),
        autoencoder=space.fingerprint,
        rows_per_file=config.rows_per_file,
        threads=config.dataloader_num_workers,
        rank=state.process_index,
        world_size=state.num_processes,
    )
    if state.is_main_process:
        what = "images" if captions is None else "images and their captions"
        print(f"{len(data.images)} {what} encoded in {config.output_dir}\n")
        script = "train_unconditional.py" if captions is None else "train_text2img.py"
        print(f"python {script} --train_data_dir {config.output_dir} {flags} --resolution {config.resolution} ...")
    state.destroy_process_group()


if __name__ == "__main__":
    run(main)
