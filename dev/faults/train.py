"""One-line faults of the training step and loop; each must fail a test. dev/faults/run.py applies them."""

FAULTS = [  # name, file, old text, new text, tests
    (
        "ascend instead of descend",
        "fourdiffusion/train/loop.py",
        "accelerator.backward(loss)",
        "accelerator.backward(-loss)",
        ["tests/train/test_train_step.py"],
    ),
    (
        "learning-rate schedule not applied",
        "fourdiffusion/train/loop.py",
        "rate = config.learning_rate * learning_rate_factor(config, step)",
        "rate = config.learning_rate",
        ["tests/train/test_train_step.py"],
    ),
    (
        "moving average inverted",
        "fourdiffusion/train/loop.py",
        "1 - ema_decay(config, step))",
        "ema_decay(config, step))",
        ["tests/train/test_train_step.py"],
    ),
    (
        "timestep_shift inverted",
        "fourdiffusion/train/step.py",
        "u = config.timestep_shift * u / (1 + (config.timestep_shift - 1) * u)",
        "u = u / (config.timestep_shift + (1 - config.timestep_shift) * u)",
        ["tests/train/test_train_step.py"],
    ),
    (
        "accumulated loss not averaged",
        "fourdiffusion/train/loop.py",
        "{name: value / accumulation for name",
        "{name: value for name",
        ["tests/train/test_train.py"],
    ),
    (
        "every process reads the same samples",
        "fourdiffusion/train/step.py",
        "range(rank * size, config.batch_size, size * num_processes)",
        "range(0, config.batch_size, size * num_processes)",
        ["tests/train/test_train_step.py"],
    ),
    (
        "gradients not cleared",
        "fourdiffusion/train/loop.py",
        "    optimizer.zero_grad(set_to_none=True)\n",
        "",
        ["tests/train/test_train.py", "tests/train/test_train_step.py"],
    ),
    (
        "text dropped with the image prompt's probability",
        "fourdiffusion/diffusion/objectives.py",
        "dropout[:, 1] >= self.text_drop_prob",
        "dropout[:, 1] >= self.cond_drop_prob",
        ["tests/diffusion/test_objectives.py"],
    ),
    (
        "mirrored pictures with unmirrored cameras",
        "fourdiffusion/datasets/sampling.py",
        "cameras.mirror(c2w)",
        "c2w",
        ["tests/datasets/test_sampling.py"],
    ),
]
