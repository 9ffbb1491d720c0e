"""One-line faults of the diffusion model: each must fail at least one of the tests that are named with it.

FAULTS: (name, file, old text, new text, [test ids]); the old text occurs once in the file.
"""

GENERATION = "tests/diffusion/test_generation.py"
REFERENCE = "tests/diffusion/test_reference.py"
MOTION = "tests/diffusion/test_motion.py"

FAULTS: list[tuple[str, str, str, str, list[str]]] = [
    (
        "windows of a long video are summed instead of averaged",
        "fourdiffusion/diffusion/generation.py",
        "scheduler.step(noise / passes, timestep, z)",
        "scheduler.step(noise, timestep, z)",
        [f"{GENERATION}::test_overlapping_windows_of_independent_frames_equal_the_whole"],
    ),
    (
        "the window of the settings is not used",
        "fourdiffusion/diffusion/generation.py",
        "frame_groups(settings.long_video, len(frames), settings.window, longest)",
        "frame_groups(settings.long_video, len(frames), longest, longest)",
        [f"{GENERATION}::test_windows_of_the_settings_are_used"],
    ),
    (
        "x0 rescale factor inverted",
        "fourdiffusion/diffusion/distillation.py",
        "x0_plain.std() / x0.std()",
        "x0.std() / x0_plain.std()",
        [f"{REFERENCE}::test_distillation[rule]"],
    ),
    (
        "guidance sign",
        "fourdiffusion/diffusion/distillation.py",
        "guidance * (noise_cond - noise_uncond)",
        "guidance * (noise_uncond - noise_cond)",
        [f"{GENERATION}::test_guidance_leads_away_from_the_unconditional_prediction"],
    ),
    (
        "noise schedule indexing off by one",
        "fourdiffusion/diffusion/denoiser.py",
        "self.alphas_cumprod[timestep]",
        "self.alphas_cumprod[timestep - 1]",
        ["tests/diffusion/test_pipeline.py::test_velocity_and_epsilon_tell_of_the_same_noise"],
    ),
    (
        "extra view dropped at the wrong end",
        "fourdiffusion/diffusion/denoiser.py",
        "[:, :, :-1].to(z.dtype)",
        "[:, :, 1:].to(z.dtype)",
        [f"{GENERATION}::test_the_denoiser_gives_each_branch_its_conditions"],
    ),
    (
        "extra view not dropped",
        "fourdiffusion/diffusion/denoiser.py",
        "[:, :, :-1].to(z.dtype)",
        ".to(z.dtype)",
        [f"{GENERATION}::test_the_denoiser_gives_each_branch_its_conditions"],
    ),
    (
        "camera conditioning translation not normalized",
        "fourdiffusion/cameras.py",
        "c2w[..., :3, 3] / c2w[..., :3, 3].norm(dim=-1, keepdim=True)",
        "c2w[..., :3, 3]",
        [f"{GENERATION}::test_the_denoiser_gives_each_branch_its_conditions"],
    ),
    (
        "camera of the extra view is not zero",
        "fourdiffusion/diffusion/denoiser.py",
        "torch.zeros_like(camera[:1])",
        "camera[:1]",
        [f"{GENERATION}::test_the_denoiser_gives_each_branch_its_conditions"],
    ),
    (
        "motion attention over views instead of frames",
        "fourdiffusion/diffusion/motion.py",
        '"(b f v) c h w -> (b v h w) f c", f=num_frames, v=num_views',
        '"(b v f) c h w -> (b v h w) f c", f=num_frames, v=num_views',
        [f"{MOTION}::test_clips_and_views_never_meet[2]"],
    ),
    (
        "motion layers without frame positions",
        "fourdiffusion/diffusion/motion.py",
        "attention(states + self.positions[:num_frames].to(states.dtype))",
        "attention(states)",
        [f"{MOTION}::test_order_of_frames_matters"],
    ),
    (
        "zero image tokens missing in the unconditional branch",
        "fourdiffusion/diffusion/pipeline.py",
        "torch.stack([image, torch.zeros_like(image)]",
        "torch.stack([image, image]",
        [f"{GENERATION}::test_the_denoiser_gives_each_branch_its_conditions"],
    ),
    (
        "extra view kept in the unconditional branch",
        "fourdiffusion/diffusion/pipeline.py",
        "torch.stack([latents, torch.zeros_like(latents)]",
        "torch.stack([latents, latents]",
        [f"{GENERATION}::test_the_denoiser_gives_each_branch_its_conditions"],
    ),
    (
        "negative prompt ignored",
        "fourdiffusion/diffusion/pipeline.py",
        "[prompt, negative_prompt]",
        "[prompt, prompt]",
        [f"{GENERATION}::test_the_denoiser_gives_each_branch_its_conditions"],
    ),
    (
        "add_noise with swapped roots",
        "fourdiffusion/diffusion/distillation.py",
        "return alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * noise",
        "return (1 - alpha_bar).sqrt() * z + alpha_bar.sqrt() * noise",
        [f"{REFERENCE}::test_distillation[rule]"],
    ),
    (
        "DDIM order of timesteps",
        "fourdiffusion/diffusion/generation.py",
        "enumerate(scheduler.timesteps)",
        "enumerate(scheduler.timesteps.flip(0))",
        [f"{GENERATION}::test_the_sampler_walks_from_noise_to_the_clean_latents"],
    ),
    (
        "SDS loss not divided by views",
        "fourdiffusion/diffusion/distillation.py",
        "/ (z.shape[0] * z.shape[1])",
        "/ z.shape[0]",
        [f"{REFERENCE}::test_distillation[rule]"],
    ),
    (
        "latents decoded without their scale",
        "fourdiffusion/diffusion/encoders.py",
        "flat = (z.flatten(0, -4) / vae.config.scaling_factor)",
        "flat = (z.flatten(0, -4) * vae.config.scaling_factor)",
        ["tests/diffusion/test_encoders.py::test_shapes_and_leading_axes"],
    ),
    (
        "the model's own scheduler is not used",
        "fourdiffusion/diffusion/pipeline.py",
        "set_scheduler(pipeline, own.scheduler, own.timestep_spacing)",
        "pass",
        [f"{GENERATION}::test_settings_travel_with_the_weights"],
    ),
    (
        "the user's setting does not override the model's own",
        "fourdiffusion/diffusion/settings.py",
        "return replace(own, **{key: value for key, value in given.items() if value is not None})",
        "return own",
        [f"{GENERATION}::test_the_command_samples_each_model_as_it_is_made_to_be"],
    ),
    (
        "samples are not checked for NaN",
        "fourdiffusion/diffusion/generation.py",
        "                require_finite(branch,",
        "                (lambda *_: None)(branch,",
        [f"{GENERATION}::test_the_first_network_that_is_not_finite_is_named"],
    ),
    (
        "query and value of a fused projection swapped",
        "fourdiffusion/diffusion/release.py",
        '"qkv".index(fused[1])',
        '"vkq".index(fused[1])',
        [f"{REFERENCE}::test_clip_encoders[rule]"],
    ),
]
