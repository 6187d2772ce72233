"""Reference vectors and the diagnosis: every planted mistake is named, nobody right is accused."""

import functools
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mamlnp import array, conformance, maml, meta, nn, tree
from mamlnp.autodiff import dot, grad, vjp
from mamlnp.cli import main
from mamlnp.conformance import CASES, MISTAKES, RIGHT, Variant, cases, named
from mamlnp.diagnosis import diagnose
from mamlnp.errors import DataError
from mamlnp.rl.maml_rl import flat

ROOT = Path(__file__).parents[1]


@functools.cache
def known(seed: int = 0) -> Any:
    return cases(seed)


def answer(how: Variant = RIGHT, only: Any = CASES, seed: int = 0, dtype: Any = None) -> Any:
    found: dict[str, np.ndarray] = {}
    for name in only:
        found |= named(known(seed)[name].meta_gradient(how), f"{name}/meta_gradient")
    return {k: v.astype(dtype or v.dtype) for k, v in found.items()}


# ---- the numbers themselves


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_right_by_finite_differences(name: str) -> None:
    assert known()[name].error() < 1e-7


@pytest.mark.parametrize("name", CASES)
def test_the_meta_gradient_is_mamls(name: str) -> None:
    case = known()[name]
    inner, outer = case.losses("batch")

    def loss(params: Any, batch: Any) -> Any:
        return inner(params, batch) if batch is case.task.support else outer(params, batch)

    how = {"inner_lr": case.inner_lr, "inner_steps": case.inner_steps}
    query_losses, gradient = maml.meta_gradient(loss, case.params, case.task, **how)
    np.testing.assert_allclose(flat(gradient), flat(case.meta_gradient()), rtol=1e-12)
    np.testing.assert_allclose(query_losses.numpy(), case.losses_after(case.params).numpy())


def test_the_quadratics_closed_form() -> None:
    case = known()["quadratic"]
    (a, b), (c, d) = case.task
    theta = case.params["point"]["theta"].numpy()
    expected = np.zeros(4)
    for i in range(3):
        contraction = np.eye(4) - case.inner_lr * a[i]
        adapted = theta - case.inner_lr * (a[i] @ theta - b[i])
        np.testing.assert_allclose(case.adapted()["point"]["theta"].numpy()[i], adapted)
        expected += contraction @ (c[i] @ adapted - d[i])
    np.testing.assert_allclose(flat(case.meta_gradient()), expected)
    vector = conformance._vector(case.params)
    np.testing.assert_allclose(flat(case.support_hvp(vector)), a.sum(0) @ flat(vector))


def test_constant_statistics_in_the_second_derivative_leave_the_inner_step_alone() -> None:
    """The product with Hessians of the right statistics is the right meta-gradient."""
    case = known()["conv"]
    right = case.losses
    object.__setattr__(case, "losses", lambda statistics: right("batch"))
    try:
        late = case.meta_gradient(Variant(statistics="constant in the Hessian"))
    finally:
        object.__setattr__(case, "losses", right)
    np.testing.assert_allclose(flat(late), flat(case.meta_gradient()), rtol=1e-10)


@pytest.mark.parametrize("values", [False, True])
def test_saved_statistics_are_right_once_and_constants_afterwards(values: bool) -> None:
    """What a backward pass that saved numbers gives, by differences of it with those held."""
    rng = np.random.default_rng(0)
    x, ct, u, v = rng.normal(size=(4, 3, 2, 2, 2))
    gamma = rng.normal(size=(1, 1, 1, 2))
    eps, axes = conformance.EPSILON, (0, 1, 2)
    average, scale = x.mean(axes), (x.var(axes) + eps) ** -0.5
    hat = (x - average) * scale

    def backward(x: Any, gamma: Any, hat: Any = None) -> Any:
        hat = (x - average) * scale if hat is None else hat
        along = ct.mean(axes) + hat * (ct * hat).mean(axes)
        return gamma * scale * (ct - along), (ct * hat).sum(axes)

    def once(x: Any, gamma: Any) -> Any:
        return vjp(lambda *a: conformance.saving(*a, values=values), x, gamma)[1](ct)

    right = vjp(lambda x, g: nn.batch_norm({"beta": array(np.zeros(2)), "gamma": g}, x),
                x[None], gamma.reshape(1, 2))[1](ct[None])  # fmt: skip
    for found, expected in zip(once(x, gamma), right, strict=True):
        np.testing.assert_allclose(found.numpy().ravel(), expected.numpy().ravel(), rtol=1e-10)
    twice = grad(lambda x, g: dot(once(x, g)[0], u) + once(x, g)[1].sum(), (0, 1))(x, gamma)
    held = hat if values else None

    def along(h: float) -> Any:
        dx, dgamma = backward(x + h * v, gamma + h, held)
        return (dx * u).sum() + dgamma.sum()

    difference = (along(1e-5) - along(-1e-5)) / 2e-5
    product = (twice[0].numpy() * v).sum() + twice[1].numpy().sum()
    np.testing.assert_allclose(product, difference, rtol=1e-8)


def test_only_the_last_step_has_one_factor_of_the_product() -> None:
    case = known()["sine-5-steps"]
    inner, outer = case.losses("batch")
    theta = meta.per_task(case.params, 3)
    for _ in range(4):
        theta = maml.descend(theta, grad(meta.total(inner, case.task.support))(theta), 0.1)

    def last(theta: Any) -> Any:
        grads = grad(meta.total(inner, case.task.support))(theta)
        return meta.total(outer, case.task.query)(maml.descend(theta, grads, 0.1))

    expected = tree.map(lambda g: g.sum(0), grad(last)(theta))
    found = case.meta_gradient(Variant(differentiated="last step"))
    np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-10)


# ---- the diagnosis


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_right_answer_is_right(dtype: Any) -> None:
    found = diagnose(answer(dtype=dtype))
    assert found.right and not found.explanations and str(found).endswith("right.")


def test_nobody_right_is_accused_whatever_the_seed() -> None:
    """Another way to the same numbers, in both types, over 100 draws of the cases."""
    for seed in range(100):
        name = list(CASES)[seed % len(CASES)]
        case = cases(seed)[name]
        inner, _ = case.losses("batch")
        how: Any = {"inner_lr": case.inner_lr, "inner_steps": case.inner_steps}
        if name != "reinforce":
            _, gradient = maml.meta_gradient(inner, case.params, case.task, method="hvp", **how)
        else:
            gradient = case.meta_gradient()
        single = np.float32 if seed % 2 else np.float64
        given = {
            key: leaf.astype(single)
            for key, leaf in named(gradient, f"{name}/meta_gradient").items()
        }
        found = diagnose(given, seed)
        assert found.right, f"seed {seed}: {found}"
        assert set(found.missing) == set(CASES) - {name}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_named(mistake: str, dtype: Any) -> None:
    found = diagnose(answer(MISTAKES[mistake], dtype=dtype))
    assert not found.right and found.explanations == [mistake]
    assert mistake in str(found)


@pytest.mark.parametrize("seed", range(1, 4))
def test_mistakes_are_named_for_other_draws_too(seed: int) -> None:
    for mistake, how in MISTAKES.items():
        assert diagnose(answer(how, seed=seed), seed).explanations == [mistake]


def test_a_mistake_in_some_cases_only_is_no_explanation_of_all() -> None:
    """Judged jointly: first order in one case and right in another is not first order."""
    given = answer(Variant(first_order=True), ["sine-1-step"]) | answer(only=["sine-5-steps"])
    found = diagnose(given)
    assert [v.agrees for v in found.verdicts] == [False, True]
    assert not found.explanations and "no known mistake" in str(found)


def test_each_case_has_its_mistake_where_there_is_none_for_all() -> None:
    wrong = {"sine-1-step": Variant(first_order=True), "reinforce": Variant(extra_steps=1)}
    given = answer(only=["quadratic", "conv"])
    for name, how in wrong.items():
        given |= answer(how, [name])
    given["conv/meta_gradient/head.b"] = given["conv/meta_gradient/head.b"] + 1
    found = diagnose(given)
    labels = {v.case: v.explanations for v in found.verdicts}
    assert labels == {
        "quadratic": [],
        "sine-1-step": ["first order instead of second: the inner gradient is a constant"],
        "conv": [],
        "reinforce": ["there is an inner step too many"],
    }
    assert re.search(r"reinforce +alone: there is an inner step too many", str(found))
    assert re.search(r"conv +parameters that differ: head.b", str(found))


def test_float32_in_an_array_of_float64_is_no_mistake() -> None:
    for how, explanations in [(RIGHT, []), *((v, [k]) for k, v in MISTAKES.items())]:
        given = {k: v.astype(np.float32).astype(np.float64) for k, v in answer(how).items()}
        found = diagnose(given)
        assert found.right == (how is RIGHT) and found.explanations == explanations
    partly = {k: v * (1 + 1e-7) for k, v in answer().items()}  # summed in float64, say
    assert "compute everything in float64" in str(diagnose(partly))


def test_nan_is_no_known_mistake() -> None:
    found = diagnose({k: v * np.nan for k, v in answer().items()})
    assert not found.right and not found.explanations and "conv2.w nan" in str(found)
    losses = {"sine-1-step/query_losses": np.full(3, np.nan)}
    assert "query losses DIFFER" in str(diagnose(answer(only=["sine-1-step"]) | losses))


def test_what_cannot_be_told_apart_is_all_named() -> None:
    found = diagnose(answer(Variant(first_order=True), ["quadratic"]))
    assert len(found.explanations) == 1
    scaled = answer(only=["sine-1-step"])
    both = diagnose({k: 5 * v for k, v in scaled.items()})
    assert both.explanations == ["the outer loss is a sum over examples instead of a mean"]
    halved = diagnose({k: v / 2 for k, v in answer(only=["conv"]).items()})
    assert halved.explanations == ["tasks are averaged instead of summed"]
    steps = Variant(differentiated="last step"), Variant(differentiated="last step")
    assert diagnose(answer(steps[0], ["sine-1-step"])).right  # one step has no other


def test_two_mistakes_at_once_are_both_named() -> None:
    how = Variant(first_order=True, over_tasks="mean")
    (explanation,) = diagnose(answer(how)).explanations
    assert "first order" in explanation and "averaged" in explanation


@pytest.mark.parametrize("how", [RIGHT, Variant(first_order=True)])
def test_a_flipped_sign_and_a_constant_factor_are_named(how: Variant) -> None:
    minus = diagnose({key: -value for key, value in answer(how).items()}).explanations
    assert all("the sign is flipped" in mistake for mistake in minus) and minus
    assert ("first order" in minus[0]) == how.first_order
    (seven,) = diagnose({key: 7 * value for key, value in answer().items()}).explanations
    assert seven == "every number is 7 times the right one"
    each = {key: value * (3 if key.startswith("conv") else 2) for key, value in answer().items()}
    (different,) = diagnose(each).explanations
    assert (
        "a constant times the right one: 2 in quadratic" in different and "3 in conv" in different
    )


def test_a_right_but_flattened_gradient_is_told_its_shape() -> None:
    given = {key: value.ravel() for key, value in answer().items()}
    with pytest.raises(
        DataError, match=r"is float64\[\d+\], not float64\[\d+, \d+\]. Give the gradient that shape"
    ):
        diagnose(given)


def test_another_order_of_axes_is_seen() -> None:
    turned = {k: np.ascontiguousarray(v.T) for k, v in answer().items()}
    (explanation,) = diagnose(turned).explanations
    assert explanation.startswith("arrays have their axes in another order: ")
    channels_first = answer()
    for layer in ("conv1", "conv2"):
        key = f"conv/meta_gradient/{layer}.w"
        channels_first[key] = channels_first[key].transpose(3, 2, 0, 1)
    assert "conv1.w, conv2.w" in diagnose(channels_first).explanations[0]
    both = {k: v.T for k, v in answer(Variant(first_order=True)).items()}
    (explanation,) = diagnose(both).explanations
    assert "first order" in explanation and "axes in another order" in explanation


def test_what_no_mistake_explains_is_shown_by_parameter() -> None:
    given = answer()
    given["conv/meta_gradient/conv2.w"] = given["conv/meta_gradient/conv2.w"] * 1.5
    found = diagnose(given)
    assert not found.explanations
    (wrong,) = [v for v in found.verdicts if not v.agrees]
    assert wrong.case == "conv" and list(wrong.differs) == ["conv2.w"]
    assert "conv2.w" in str(found)


def test_what_else_is_given_is_held_against_too() -> None:
    right = conformance.vectors(known()["sine-1-step"])
    given = {k: v for k, v in right.items() if "theta" not in k}
    assert diagnose(given).right
    given["sine-1-step/query_losses"] = given["sine-1-step/query_losses"] * 2
    found = diagnose(given)
    assert not found.right and found.verdicts[0].agrees and "query losses DIFFER" in str(found)


# ---- the commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors")
    main(["vectors", str(path)])
    return path


def status(argv: list[str]) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    return stopped.value.code


def test_the_manifest_says_every_convention(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["cases"]) == set(CASES)
    for case in manifest["cases"].values():
        assert 0 < case["error_against_finite_differences"] < 1e-7
        assert {"loss", "loss_reduction", "alpha", "inner_steps", "tasks"} <= set(case)
    assert {"padding", "batch_norm"} <= set(manifest["cases"]["conv"])
    text = json.dumps(manifest)
    for word in (
        "SUM over tasks",
        "transpose(0, 1, 4, 2, 3)",
        "SAME",
        "epsilon",
        "biased",
        "theta",
    ):
        assert word in text
    with np.load(folder / "vectors.npz") as file:
        quantities = {name.split("/")[1] for name in file.files}
        assert all(file[name].dtype in (np.float64, np.int64) for name in file.files)
    assert quantities == {
        "support", "query", "theta", "adapted", "support_losses", "query_losses",
        "meta_gradient", "first_order", "vector", "hvp",
    }  # fmt: skip


def test_from_the_command_line(folder: Path, tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "right.npz", **answer())
    assert status(["verify", str(folder), str(tmp_path / "right.npz")]) == 0
    np.savez(tmp_path / "wrong.npz", **answer(Variant(first_order=True)))
    assert status(["verify", str(folder), str(tmp_path / "wrong.npz")]) == 1
    assert "the mistake: first order instead of second" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: {}, "nothing is named like quadratic/meta_gradient"),
        (lambda a: {"x": np.ones(2)}, "the names are x"),
        (lambda a: {k: v for k, v in a.items() if "conv1.w" not in k}, "conv1.w is missing"),
        (lambda a: a | {"conv/meta_gradient/conv9.w": np.ones(2)}, "conv9.w is unknown"),
        (lambda a: a | {"conv/meta_gradient/head.b": np.ones(7)}, r"head.b is float64\[7\]"),
        (lambda a: a | {"conv/meta_gradient/head.b": np.ones(3, int)}, r"head.b is int64\[3\]"),
    ],
)
def test_answers_that_cannot_be_compared(
    damage: Any, message: str, folder: Path, tmp_path: Path, capsys: Any
) -> None:
    np.savez(tmp_path / "theirs.npz", **damage(answer()))
    assert status(["verify", str(folder), str(tmp_path / "theirs.npz")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)


def test_files_that_are_none(folder: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "objects.npz", x=np.array([print], dtype=object), allow_pickle=True)
    for name in ("text.npz", "objects.npz", "missing.npz"):
        assert status(["verify", str(folder), str(tmp_path / name)]) == 2
        assert "is not a whole .npz of plain arrays" in capsys.readouterr().err
    assert status(["verify", str(tmp_path), str(tmp_path / "text.npz")]) == 2
    assert "Write it with: mamlnp vectors DIR" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert status(["vectors", str(tmp_path / "file")]) == 2


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_the_examples_agree(package: str, folder: Path, tmp_path: Path, capsys: Any) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install {package}")
    (tmp_path / "vectors").symlink_to(folder)
    script = ROOT / "examples" / f"verify_{package}.py"
    subprocess.run([sys.executable, script], check=True, cwd=tmp_path, env=dict(os.environ))
    assert status(["verify", str(folder), str(tmp_path / f"{package}.npz")]) == 0
    errors = re.findall(r"relative error (\S+)", capsys.readouterr().out)
    assert len(errors) == len(CASES) and max(map(float, errors)) < 1e-10
