"""Encode the images of a data set with an autoencoder, once, into files that train_unconditional.py reads.

Under `accelerate launch` the processes share the work. After a kill the same command goes on where it was.
"""

from snowmelt.config import parse
from snowmelt.encode_options import EncodeConfig
from snowmelt.errors import run


def main() -> None:
    config = parse(EncodeConfig)

    # Here, not above, so that --help doesn't wait for torch and diffusers.
    import torch
    from accelerate import PartialState

    from snowmelt.data.encoding import load_images_to_encode, write_encoded
    from snowmelt.environment import find_launch, use_all_cores
    from snowmelt.spaces import LatentSpace, PixelSpace, load_autoencoder

    use_all_cores(find_launch())
    state = PartialState(cpu=not torch.accelerator.is_available())
    vae = load_autoencoder(str(config.autoencoder)).to(state.device)
    images = load_images_to_encode(config)
    space = LatentSpace(vae, PixelSpace(images.value_range))
    space.channels(images)  # or it refuses
    write_encoded(
        config.output_dir,
        images,
        space.to_cache,
        config,
        autoencoder=space.fingerprint,
        rows_per_file=config.rows_per_file,
        dtype="float32" if config.mixed_precision == "no" else "float16",
        rank=state.process_index,
        world_size=state.num_processes,
    )
    if state.is_main_process:
        print(f"{len(images)} images encoded in {config.output_dir}\n")
        words = (
            f"--train_data_dir {config.output_dir} --autoencoder {config.autoencoder} --resolution {config.resolution}"
        )
        print(f"python train_unconditional.py {words} ...")
    state.destroy_process_group()


if __name__ == "__main__":
    run(main)
