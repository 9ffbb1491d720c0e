"""Faults of the 4D stage: its step, its set-up, its run folder."""

STEP, SETUP, LOOP = "fourdiffusion/fit/step.py", "fourdiffusion/fit/setup.py", "fourdiffusion/fit/loop.py"
LOSSES, PASS = "fourdiffusion/scene/losses.py", "fourdiffusion/scene/render_pass.py"
RENDERER, RUNS = "fourdiffusion/scene/renderer.py", "fourdiffusion/runs.py"


def step(*names: str) -> list[str]:
    return [f"tests/fit/test_step.py::{name}" for name in names]


def fit(*names: str) -> list[str]:
    return [f"tests/fit/test_fit.py::{name}" for name in names]


DESCENDS = "test_the_step_descends_along_the_weighted_gradient_of_each_term"
RELEASED = ["tests/fit/test_released_step.py::test_a_released_step_by_hand"]
SUM = "test_the_loss_is_the_weighted_sum_of_the_logged_terms_and_each_has_its_steps"
CHUNKS = ["tests/scene/test_render_pass.py::test_the_gradient_is_that_of_the_renderer_whole_and_in_chunks"]

FAULTS = [
    (
        "the sign of the SDS gradient is flipped",
        LOSSES,
        "return grad_outputs[0] * gradient, None, None",
        "return -grad_outputs[0] * gradient, None, None",
        step(f"{DESCENDS}[sds]", "test_distillation_with_an_oracle_approaches_the_truth"),
    ),
    (
        "photometric colors with rows and columns exchanged",
        STEP,
        "target.views[view, frame, :, row, column]",
        "target.views[view, frame, :, column, row]",
        step("test_pixels_have_the_colors_of_their_view_frame_and_place"),
    ),
    (
        "per_frame with the motion layers on",
        SETUP,
        'negative, sds.source == "fourdm")',
        "negative, True)",
        fit("test_only_4d_sds_looks_at_other_frames[per_frame]"),
    ),
    (
        "fourdm without the motion layers",
        SETUP,
        'negative, sds.source == "fourdm")',
        "negative, False)",
        fit("test_only_4d_sds_looks_at_other_frames[fourdm]"),
    ),
    (
        "the anchor is always frame 0",
        STEP,
        "frame = int(torch.randint(len(target.times), (), generator=generator))",
        "frame = 0",
        step("test_the_anchor_loss_compares_a_random_frame_of_the_anchor_view"),
    ),
    (
        "the anchor is always view 0",
        STEP,
        "view = slice(target.anchor, target.anchor + 1)",
        "view = slice(0, 1)",
        step("test_the_anchor_loss_compares_a_random_frame_of_the_anchor_view"),
    ),
    (
        "sparsity_start_step is ignored",
        STEP,
        "loss.lambda_sparsity if step >= loss.sparsity_start_step else 0.0",
        "loss.lambda_sparsity",
        step(SUM),
    ),
    (
        "opacity_start_step is ignored",
        STEP,
        "loss.lambda_opacity if step >= loss.opacity_start_step else 0.0",
        "loss.lambda_opacity",
        step(SUM),
    ),
    (
        "the orientation ramp is dropped",
        STEP,
        "step, loss.lambda_orientation, loss.lambda_orientation_end, loss.orientation_ramp_steps",
        "step, loss.lambda_orientation, loss.lambda_orientation, loss.orientation_ramp_steps",
        step(SUM),
    ),
    (
        "sds.every is ignored",
        STEP,
        "since >= 0 and since % sds.every == 0",
        "since >= 0",
        step(SUM),
    ),
    (
        "sds.start_step is ignored",
        STEP,
        "step - config.sds.start_step",
        "step",
        step(SUM),
    ),
    (
        "regularizers vanish at steps without SDS",
        STEP,
        "return self.sds or any(self.weights[name] > 0 for name in REGULARIZERS)",
        "return self.sds",
        step(SUM),
    ),
    (
        "the weights of the terms are dropped",
        STEP,
        "[weights[name] * value for",
        "[value for",
        step(SUM),
    ),
    (
        "lr_decay is ignored",
        LOOP,
        "* plan.lr_factor",
        "",
        step("test_learning_rates_fall_exponentially"),
    ),
    (
        "the random azimuth is dropped",
        STEP,
        "360 * offset",
        "0 * offset",
        step("test_sides_are_orthogonal_and_come_from_everywhere"),
    ),
    (
        "the random elevation is dropped",
        STEP,
        "config.sds.elevation_max_deg * height",
        "0.0",
        step("test_sides_are_orthogonal_and_come_from_everywhere"),
    ),
    (
        "the resolution milestones are dropped",
        STEP,
        " if step >= milestone),",
        "),",
        step("test_renders_from_a_random_side_grow_at_the_milestones"),
    ),
    (
        "the t ramp is dropped",
        STEP,
        "losses.ramp(since, sds.t_start, sds.t_max_end, sds.ramp_steps)",
        "sds.t_start",
        step("test_noise_levels_lie_between_the_two_ramps"),
    ),
    (
        "the guidance ramp is dropped",
        STEP,
        "losses.ramp(since, sds.guidance_scale, end, sds.ramp_steps)",
        "sds.guidance_scale",
        step("test_guidance_runs_along_its_ramp"),
    ),
    (
        "use_input_view is dropped",
        SETUP,
        "if config.loss.use_input_view:",
        "if False:",
        fit("test_the_input_stands_in_for_the_view_from_its_place_where_asked"),
    ),
    (
        "a window of a long video is rendered at the first times",
        STEP,
        "problem.target.times[draw.frames]",
        "problem.target.times[: len(draw.frames)]",
        step("test_long_videos_are_distilled_in_windows_at_their_own_times"),
    ),
    (
        "the occupancy grid never decays",
        RENDERER,
        "self.density.flatten() * config.occupancy_decay",
        "self.density.flatten()",
        step("test_an_occupancy_grid_forgets_what_is_gone"),
    ),
    (
        "the occupancy grid looks at all times in every step",
        LOOP,
        "due, share = due_times(times, number, every)",
        "due, share = times, 1.0",
        step("test_the_occupancy_grid_sees_each_time_once_in_so_many_steps"),
    ),
    (
        "a longer video makes the occupancy update dearer",
        LOOP,
        "* max(len(times), FRAMES_EACH_ROUND) // FRAMES_EACH_ROUND",
        "* 1",
        step("test_the_occupancy_grid_sees_each_time_once_in_so_many_steps"),
    ),
    (
        "the input is supervised at the wrong frame",
        STEP,
        "target.rgba[frame, :, row, column]",
        "target.rgba[0 * frame, :, row, column]",
        step("test_input_pixels_have_the_color_and_the_matte_of_their_frame_and_place"),
    ),
    (
        "the input is compared on white, where fog does not show",
        LOSSES,
        "(error.square() + error * uncovered + uncovered.square() / 3)",
        "(error + uncovered).square()",
        ["tests/scene/test_losses.py::test_error_over_backgrounds_is_the_mean_over_backgrounds"],
    ),
    (
        "the anchor's matte is dropped",
        STEP,
        "if loss.anchor_matte:",
        "if False:",
        RELEASED,
    ),
    (
        "D-SSIM's border is dropped",
        LOSSES,
        'if border == "zeros" else (0,) * 4',
        'if border == "ones" else (0,) * 4',
        RELEASED,
    ),
    (
        "the normals of all frames are looked at",
        STEP,
        'if plan.weights["orientation"] <= 0 or not 0 < count < len(times):',
        "if True:",
        RELEASED,
    ),
    (
        "the loss is ascended",
        LOOP,
        "    loss.backward()",
        "    (-loss).backward()",
        step(f"{DESCENDS}[views]"),
    ),
    (
        "only the first chunk of rays gets a gradient",
        PASS,
        "for part in self._parts:\n            rendered = self._graph",
        "for part in self._parts[:1]:\n            rendered = self._graph",
        CHUNKS,
    ),
    (
        "normals that face the camera are penalized",
        LOSSES,
        "(normals * directions[ray_index]).sum(-1).clamp(min=0)",
        "(-normals * directions[ray_index]).sum(-1).clamp(min=0)",
        ["tests/scene/test_losses.py::test_orientation_counts_only_visible_normals_that_face_away"],
    ),
    (
        "another video under the same name goes on",
        RUNS,
        "if key in known and known[key] != digest:",
        "if False:",
        ["tests/test_runs.py::test_a_run_is_what_a_path_holds_not_its_spelling"],
    ),
    (
        "there is no lock",
        RUNS,
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        ["tests/test_runs.py::test_one_process_at_a_time_writes_into_a_folder"],
    ),
]
