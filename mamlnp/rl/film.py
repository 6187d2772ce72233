"""Films of the robots before and after adaptation, drawn off screen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..errors import MissingPackageError
from ..runs import atomic_write
from .agent import Agent
from .envs import ENVIRONMENTS
from .envs.locomotion import Camera, Locomotion

try:
    import imageio.v3 as imageio
except ImportError as error:
    raise MissingPackageError(
        "imageio: is needed to write films, and is not installed. "
        "Run: pip install 'imageio[ffmpeg]'"
    ) from error

ENDINGS = (".gif", ".mp4")
SIDE = 240, 320  # height and width of a panel, in pixels
EVERY = 2  # steps from one picture to the next
CAPTION = 22  # pixels


def shoot(agent: Agent, out: Path, *, task: float | None, steps: int, seed: int) -> str:
    """Write a film of an episode before and after each gradient step, side by side.

    Args:
        agent: of the cheetah or the ant.
        out: a .gif or an .mp4.
        task: the goal; drawn if not given.
        steps: the most gradient steps.
        seed: of the rollouts and the task.

    Returns:
        The task and the return of each episode, as text.
    """
    environment = ENVIRONMENTS[agent.environment]
    rng = np.random.default_rng(seed)
    drawn = environment.sample_tasks(1, rng)
    goal = drawn if task is None else environment.as_task(task)[None]
    simulations = environment.make(1, 1)
    assert isinstance(simulations, Locomotion)
    camera = Camera(simulations.model, *SIDE)
    panels, captions, returns = [], [], []
    for step in range(steps + 1):
        adapted = agent.adapt(goal, inner_steps=step, rng=np.random.default_rng([seed, step]))
        pictures, total = _episode(adapted, simulations, goal, camera, f"after {step} steps")
        panels.append(pictures)
        returns.append(total)
        when = f"after {step} gradient step{'s' * (step > 1)}" if step else "before adaptation"
        captions.append(f"{when}: return {total:.0f}")
    camera.close()
    title = f"{agent.environment}, goal {goal.item():.3g}"
    frames = _side_by_side(panels, [f"{title}; {captions[0]}", *captions[1:]])
    fps = round(1 / (EVERY * simulations.model.opt.timestep))
    with atomic_write(out) as partial:
        if out.suffix == ".gif":
            imageio.imwrite(partial, frames, duration=1000 / fps, loop=0)
        else:
            imageio.imwrite(partial, frames, fps=fps)
    return "\n".join([title, *captions])


def _episode(
    agent: Agent, simulations: Locomotion, goal: np.ndarray, camera: Camera, label: str
) -> tuple[list[np.ndarray], float]:
    """Pictures of an episode, by the policy's mean actions, and its return."""
    seen = simulations.reset(goal, rng=np.random.default_rng(0))
    pictures, total = [], 0.0
    for t in tqdm(range(simulations.horizon), label, leave=False, delay=1):
        if t % EVERY == 0:
            pictures.append(camera.picture(simulations.batch.get_data(0)))
        told = np.concatenate([seen, goal], axis=1) if agent.told else seen
        step = simulations.step(agent.act(told))
        seen, total = step.observations, total + float(step.rewards[0])
        if step.done[0] or step.broken[0]:
            break
    return pictures, total


def _side_by_side(panels: list[list[np.ndarray]], captions: list[str]) -> np.ndarray:
    """One picture after another, (N, H, W, 3); a panel that ends early keeps its last."""
    height, width = SIDE
    frames = []
    for n in range(max(map(len, panels))):
        page = Image.new("RGB", (width * len(panels), height + CAPTION), "white")
        draw = ImageDraw.Draw(page)
        for i, (pictures, caption) in enumerate(zip(panels, captions, strict=True)):
            page.paste(Image.fromarray(pictures[min(n, len(pictures) - 1)]), (i * width, CAPTION))
            draw.text((i * width + 6, 5), caption, "black", ImageFont.load_default(12))
        frames.append(np.asarray(page))
    return np.stack(frames)
