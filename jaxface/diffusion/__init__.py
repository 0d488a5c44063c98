"""Diffusion: noise schedules, the losses that train a denoiser, and the samplers that draw with one."""
