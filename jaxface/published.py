"""What publications report of the systems, to print beside evaluations; protocols are as far as they are told."""

# config.task -> figures of the published network on real photos.
PUBLISHED = {
  'scadm': 'SCA-DM, CelebA-HQ at 256 pixels, 200 steps, mode not said: FID 16.85, SSIM 0.54, mIoU 81.78 %',
  'sdm': 'SDM, CelebA-HQ at 256 pixels: FID 18.8, by others 21.5 and 22.8 seconds a picture on an RTX 4090',
  'autoencoder': 'VQ-f4, 256 pixels: FID of reconstructions 0.58, PSNR 27.43',
  'ipmnet': 'IPM-Net, Makeup Transfer, mean of ten draws: FID 41.47, LPIPS diversity 0.488 (real makeup 17.23, 0.616)',
  'beautygan': 'BeautyGAN, Makeup Transfer, as the authors of IPM-Net measured it: FID 56.57, LPIPS diversity 0.459',
}
