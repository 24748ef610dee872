"""Training an autoencoder, the first stage of latent diffusion (Rombach et al. 2022).

networks by name, with their discriminator                          models.py, discriminator.py
reconstruction, KL or commitment, perceptual, adversarial losses     losses.py, perceptual.py
latents' mean and std, and signs that the autoencoder has failed     latent_statistics.py
PSNR, SSIM and rFD on held-out images, reconstruction grids          reconstructions.py
"""
