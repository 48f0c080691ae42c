"""A detection run on prompts: every statistic, whatever the prompts are like."""

import dataclasses
import functools
import json

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import sharpjax as sj
from sharpjax import zoo
from sharpjax.detection.calibration import Calibration, scalars
from sharpjax.detection.registry import GROUPS, at, named
from sharpjax.detection.settings import DetectSettings
from sharpjax.detection.statistics import STATISTICS, combined_alignment, largest_step
from sharpjax.detection.summary import Judged, summarize, table_rows
from sharpjax.detection.trajectory import follow
from sharpjax.models.latent_diffusion import LatentDiffusion
from sharpjax.prompts import Case, balanced, read_cases
from sharpjax.runs.detect import detect

PROMPTS = ["cat", "dog", "", "cat", "a cat and a dog"]
FIRST = DetectSettings(statistics=at(*GROUPS["first"]), num_noises=2)


@pytest.fixture(scope="module")
def model(stable_diffusion_directory):
    return LatentDiffusion.from_pretrained(stable_diffusion_directory)


@pytest.fixture(scope="module")
def records(model, tmp_path_factory):
    return run(model, tmp_path_factory.mktemp("runs") / "first")


def run(model, directory, settings=FIRST, prompts=PROMPTS, batch_size=4, **options):
    return detect(
        model, prompts, directory, settings, fingerprint="abc", batch_size=batch_size, **options
    )


@pytest.mark.slow
def test_every_prompt_has_its_record(records):
    assert [r["condition"] for r in records] == PROMPTS
    assert [r["index"] for r in records] == list(range(5))
    for name, values in records[0]["network"].items():  # the same prompt in one batch
        # a sum may be split otherwise at another place of a batch: float32 to a few digits
        np.testing.assert_allclose(records[3]["network"][name], values, rtol=1e-4, atol=1e-6)
    empty = records[2]["network"]
    assert empty["score_difference@981"] == pytest.approx([0, 0], abs=1e-4)
    assert np.shape(empty["guidance_alignment@41"]) == (2,)
    assert np.shape(empty["standardised_alignment@41"]) == (2, 2)
    assert records[0]["network"]["hessian_score_difference@981"][0] > 0


@pytest.mark.slow
def test_values_are_the_statistics(model, records):
    key = jax.random.fold_in(jax.random.key(0), 0)
    for noise in range(2):
        x = jax.random.normal(jax.random.fold_in(key, noise), model.shape)
        pair = model.scores("a cat and a dog", 981)
        for name in ("score_difference", "hessian_score_difference", "hessian_score"):
            expected = jax.jit(STATISTICS[name].function)(pair, x)
            found = records[4]["network"][f"{name}@981"][noise]
            np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.mark.slow
def test_all_statistics_one_by_one(model, tmp_path):
    settings = DetectSettings(
        statistics=tuple(STATISTICS), num_noises=2, num_steps=5, num_probes=3, num_directions=6,
        trace_timesteps=(900, 500), path_steps=2, guidance=3.0,
    )  # fmt: skip
    records = run(model, tmp_path / "run", settings, prompts=["cat", "dog"])
    key = jax.random.key(0)
    x = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 0), 1), model.shape)
    context = model.encode(["dog"])[0]
    walk = jax.jit(lambda c, x: follow(model, c, x, num_steps=5, guidance=3.0))
    path = walk(context, x)
    draws = jax.random.fold_in(jax.random.fold_in(key, 2), 1)
    first, later, last = settings.timesteps(model.schedule)

    def direct(name, *arguments, **options):
        """In one program: each operation by itself, a network takes minutes to compile."""
        function = functools.partial(STATISTICS[name].function, **options)
        return jax.jit(function)(*arguments)

    expected = {
        name: direct(name, model.scores(context, first), model.scores(context, later), x)
        for name in ("guidance_alignment", "standardised_alignment")
    } | {
        "path_score_difference": STATISTICS["path_score_difference"].function(path),
        "last_step_difference": STATISTICS["last_step_difference"].function(path),
        "step_displacement": path.displacements,
        "curvature_difference": direct(
            "curvature_difference", model.scores(context, last), path.states[-2], key=draws
        ),
        "diagonal_distance": direct(
            "diagonal_distance",
            model.scores(context, last),
            path.states[-2],
            key=draws,
            num_probes=3,
        ),
        "p_laplacian": direct(
            "p_laplacian", model.scores(context, 10), path.states[-1], key=draws, num_directions=6
        ),
    }
    found = records[1]["network"]
    assert {name.split("@")[0] for name in found} == set(STATISTICS)
    for name, value in expected.items():
        column = next(k for k in found if k.split("@")[0] == name)
        np.testing.assert_allclose(found[column][1], value, rtol=5e-3, err_msg=name)
    assert np.shape(found["tiled_l2"]) == (1,)
    keys = [jax.random.fold_in(jax.random.fold_in(key, 0), i) for i in range(2)]
    noises = [jax.random.normal(k, model.shape) for k in keys]
    ends = [walk(context, x).states[-1] for x in noises]
    images = model.decode(jnp.stack(ends))
    tiled = STATISTICS["tiled_l2"].function(jnp.clip(images, -1, 1))
    np.testing.assert_allclose(found["tiled_l2"][0], tiled, rtol=5e-3)


@pytest.fixture(scope="module")
def silent_directory(tmp_path_factory, write_stable_diffusion):
    """Zero terminal SNR, v-prediction and trailing steps, as of fine-tuned Stable Diffusion 2."""
    folder = tmp_path_factory.mktemp("models") / "zero-snr"
    write_stable_diffusion(folder, prediction_type="v_prediction", scheduler="DDIMScheduler")
    path = folder / "scheduler" / "scheduler_config.json"
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


@pytest.mark.slow
def test_paths_out_of_pure_noise_are_the_pipelines(silent_directory):
    """Where scores do not lead on the network's predictions do; the first two scores are one."""
    model = LatentDiffusion.from_pretrained(silent_directory)
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(silent_directory, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    noise = np.random.default_rng(0).standard_normal((4, 8, 8), dtype=np.float32)
    latents = pipe(
        ["cat"], latents=torch.tensor(noise[None]), num_inference_steps=5, guidance_scale=3.0,
        output_type="latent",
    ).images[0]  # fmt: skip
    context = model.encode(["cat"])[0]
    path = jax.jit(lambda m, c, x: follow(m, c, x, num_steps=5, guidance=3.0))(
        model, context, jnp.asarray(noise)
    )
    np.testing.assert_allclose(path.states[-1], latents, atol=2e-3 * float(latents.std()))
    np.testing.assert_allclose(path.conditional[0], -noise, atol=1e-5)
    np.testing.assert_array_equal(path.difference[0], 0)
    for i in (1, 4):
        pair = model.scores(context, int(path.timesteps[i]))
        expected = jax.jit(pair.both)(path.states[i])
        found = np.stack([path.unconditional[i], path.conditional[i]])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.isfinite(path.states).all()


def test_a_prompt_that_fails_is_recorded_and_the_others_go_on(model, tmp_path):
    """The token of "dog" has a NaN in its embedding."""
    prompts = ["cat", "dog", "cat dog", "a"]  # as many as in a batch above: compiled already
    (ids,) = np.asarray(model.tokenizer(["dog"]))
    table = model.text_encoder.text_model.embeddings.token_embedding.embedding
    before = table[...]
    table[...] = before.at[int(ids[1])].set(jnp.nan)
    try:
        records = run(model, tmp_path / "run", prompts=prompts)
    finally:
        table[...] = before
    assert [("failed" in r) for r in records] == [False, True, True, False]
    assert "score_difference@981" in records[1]["failed"]
    assert "network" not in records[1]
    judged = Judged.of(records, [Case(p) for p in prompts])
    assert [case.condition for case in judged.cases] == ["cat", "a"]
    assert len(judged.failed) == 2
    lines = (tmp_path / "run/results.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert all("NaN" not in line for line in lines)


def test_a_batch_that_is_not_whole_is_computed_again_to_the_bit(model, records, tmp_path):
    folder = tmp_path / "run"
    run(model, folder, batch_size=4)
    path = folder / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:40])  # torn within the first batch
    assert run(model, folder, batch_size=4) == records
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)


@pytest.mark.slow
def test_squared(model, records, tmp_path):
    settings = DetectSettings(statistics=("hessian_score_difference",), num_noises=2, squared=True)
    found = run(model, tmp_path / "run", settings)
    for one, plain in zip(found, records, strict=True):
        expected = np.square(plain["network"]["hessian_score_difference@981"])
        np.testing.assert_allclose(
            one["network"]["hessian_score_difference@981"], expected, rtol=2e-3, atol=1e-4
        )


def test_groups_of_statistics():
    assert named(["first"]) == at(*GROUPS["first"])
    assert named(["paths", "score_difference"])[0] == "score_difference"
    assert named(["all"]) == tuple(STATISTICS)
    with pytest.raises(ValueError, match=r"must be one of score_difference, .* got 'frist'"):
        named(["frist"])


def test_balanced_choice():
    cases = [
        Case(f"m{i}", "memorized", "memorized", level) for level in (2, 4, 8) for i in range(40)
    ]
    cases[:35] = []  # level 2 has five
    cases += [Case(f"g{i}", "clean", "general") for i in range(100)]
    cases += [Case(f"h{i}", "clean", "hot") for i in range(10)]
    cases += [Case("n", "clean", "memorized", 1), Case("b", "between", "hot")]
    chosen = balanced(cases)
    levels = [c.level for c in chosen if c.verdict == "memorized"]
    assert (levels.count(2), levels.count(4) + levels.count(8), len(levels)) == (5, 55, 60)
    assert [c.source for c in chosen].count("general") == 20
    assert [c.source for c in chosen].count("hot") == 10
    assert {c.condition for c in chosen}.isdisjoint({"n", "b"})
    assert balanced(cases) == chosen


def made_up(rng, memorized):
    """Records whose memorized ones are larger."""
    return [
        {
            "index": i,
            "condition": f"c{i}",
            "network": {
                "score_difference@981": rng.normal(1.2 * m, 1, 4).tolist(),
                "standardised_alignment@41": rng.normal(
                    [0.1 * m, 20 * m], [0.1, 10], (4, 2)
                ).tolist(),
                "step_displacement": rng.normal([5, 3 + m, 1], [1, 0.1, 0.5], (4, 3)).tolist(),
            },
        }
        for i, m in enumerate(memorized)
    ]


def test_calibration_fits_and_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    settings = DetectSettings(num_noises=4)
    clean = made_up(rng, np.zeros(300))
    fitted = Calibration.fit(clean, settings, fingerprint="abc", quantile=0.9)
    again = Calibration.load(fitted.save(tmp_path / "c.json"))
    assert again.thresholds == fitted.thresholds
    assert again.standards.keys() == fitted.standards.keys() == {"alignment", "displacement"}
    for key, standard in again.standards.items():
        np.testing.assert_array_equal(standard, fitted.standards[key])

    one = made_up(rng, [1])[0]["network"]
    found = scalars(one, again)
    terms = np.array([np.mean(r["network"]["standardised_alignment@41"], axis=0) for r in clean])
    expected = combined_alignment(
        np.array(one["standardised_alignment@41"]), terms.mean(0), terms.std(0, ddof=1)
    )
    np.testing.assert_allclose(found["standardised_alignment@41"], expected, rtol=1e-5)
    steps = np.concatenate([r["network"]["step_displacement"] for r in clean])
    expected = largest_step(
        np.array(one["step_displacement"]), mean=steps.mean(0), std=steps.std(0, ddof=1)
    )
    np.testing.assert_allclose(found["step_displacement"], expected, rtol=1e-5)
    assert list(scalars(one, None)) == ["score_difference@981"]

    judged = Judged.of(made_up(rng, np.zeros(400)), [Case(f"c{i}") for i in range(400)], again)
    for name, limit in again.thresholds.items():
        called = np.mean([limit.margin(v) > 0 for v in judged.means("network", name)])
        assert called == pytest.approx(0.1, abs=0.06), name  # 300 to fix it, 400 to see


def test_calibration_counts_each_prompt_once():
    """Twenty prompts eight times are twenty: their interval is open; blank ones are none."""
    settings = DetectSettings(num_noises=4)
    clean = made_up(np.random.default_rng(0), np.zeros(40))
    blank = made_up(np.random.default_rng(1), np.full(60, 5))
    for record in blank:
        record["condition"] = " "
    expected = Calibration.fit(clean, settings, fingerprint="a")
    found = Calibration.fit([*blank, *clean, *clean, *blank], settings, fingerprint="a")
    assert found.thresholds == expected.thresholds
    for key in ("alignment", "displacement"):
        np.testing.assert_array_equal(found.standards[key], expected.standards[key])
    twenty = Calibration.fit(clean[:20] * 8, settings, fingerprint="a")
    for one in twenty.thresholds.values():
        assert one.num_prompts == 20
        assert one.high == np.inf
    with pytest.raises(ValueError, match=r"no threshold of 18 clean prompts .* needs 19 different"):
        Calibration.fit([*clean[:18] * 3, *blank], settings, fingerprint="a")


def test_calibration_of_something_else_is_refused(tmp_path):
    settings = DetectSettings(num_noises=4)
    fitted = Calibration.fit(
        made_up(np.random.default_rng(0), np.zeros(19)), settings, fingerprint="abc"
    )
    fitted.check(DetectSettings(num_noises=4, seed=3), fingerprint="abc")
    # what the statistics asked for do not depend on is free
    fitted.check(
        DetectSettings(statistics=at(*GROUPS["first"]), guidance=3.0, num_probes=9),
        fingerprint="abc",
    )
    with pytest.raises(ValueError, match="of another model"):
        fitted.check(settings, fingerprint="xyz")
    with pytest.raises(ValueError, match=r"guidance: 7\.5 there, 3\.0 now"):
        fitted.check(
            DetectSettings(statistics=at(*GROUPS["paths"]), guidance=3.0), fingerprint="abc"
        )
    with pytest.raises(ValueError, match="squared: False there, True now"):
        fitted.check(DetectSettings(squared=True), fingerprint="abc")
    with pytest.raises(ValueError, match=r"weights: \[1.0, 2.0\] there, \[1.0, 0.1\] now"):
        fitted.check(
            DetectSettings(statistics=at(*GROUPS["first"]), alignment_weights=(1, 0.1)),
            fingerprint="abc",
        )
    # of a version whose guidance_alignment was another statistic; the rest of it holds
    before = {k: v for k, v in fitted.settings.items() if k != "alignment_weights"}
    old = dataclasses.replace(fitted, settings=before)
    old.check(settings, fingerprint="abc")
    with pytest.raises(ValueError, match=r"alignment_weights: not known .*, \[1.0, 2.0\] now"):
        old.check(DetectSettings(statistics=("guidance_alignment",)), fingerprint="abc")
    with pytest.raises(ValueError, match="num_noises: 4 there, 2 now"):
        fitted.check(DetectSettings(num_noises=2), fingerprint="abc")
    with pytest.raises(ValueError, match="no threshold of 0 clean prompts"):
        Calibration.fit([{"failed": "x"}], settings, fingerprint="abc")
    with pytest.raises(FileNotFoundError, match="sharpjax calibrate"):
        Calibration.load(tmp_path / "nothing.json")
    good = json.loads(fitted.save(tmp_path / "good.json").read_text())
    assert Calibration.load(tmp_path / "good.json").thresholds == fitted.thresholds
    (first, *_) = good["thresholds"]
    damaged = [json.loads(json.dumps(good)) for _ in range(3)]
    for one, value in zip(damaged, (float("nan"), "hi", None), strict=True):
        one["thresholds"][first]["value"] = value
    texts = ["", "[]", '{"model": "abc"}', json.dumps({"thresholds": 3}), *map(json.dumps, damaged)]
    for text in texts:
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(ValueError, match="is not a calibration by sharpjax"):
            Calibration.load(tmp_path / "c.json")


def test_extremes_are_the_sharpest_and_the_flattest_by_their_names():
    def judged(column, *values):
        records = [{"condition": n, "network": {column: [v, v]}} for n, v in values]
        return Judged.of(records, [Case(name) for name, _ in values])

    large = judged("score_difference@981", ("a", 1.0), ("b", 3.0), ("c", 2.0))
    assert large.extremes("score_difference@981") == ["b", "a"]
    small = judged("effective_dimension@600", ("a", 1.0), ("b", 3.0), ("c", 2.0))
    assert small.extremes("effective_dimension@600") == ["a", "b"]  # few open directions: sharp
    assert judged("score_difference@981", ("a", 1.0), ("a", 3.0)).extremes(
        "score_difference@981"
    ) == ["a"]
    assert Judged.of([{"condition": "a", "failed": "why"}], [Case("a")]).extremes("x") == []


def test_summary_by_source_and_level(tmp_path):
    rng = np.random.default_rng(0)
    memorized = np.arange(60) < 30
    records = made_up(rng, memorized)
    cases = [
        Case(f"c{i}", "memorized", "memorized", 2 if i < 10 else 4, 0.9)
        if m
        else Case(f"c{i}", "clean", "hot" if i % 2 else "general", 0, 0.0)
        for i, m in enumerate(memorized)
    ]
    (summary,) = summarize(Judged.of(records, cases))
    assert summary.network.auc.value > 0.85
    assert summary.one_noise.auc.value < summary.network.auc.value
    assert {k: v.num_negative for k, v in summary.by_source.items()} == {"general": 15, "hot": 15}
    for source, figures in summary.by_source_one_noise.items():
        assert figures.auc.value < summary.by_source[source].auc.value
    assert summary.by_source_one_noise.keys() == {"general", "hot"}
    assert {k: v.num_positive for k, v in summary.by_level.items()} == {2: 10, 4: 20}
    assert summary.comparison is None  # it is the reference
    calibration = Calibration.fit(made_up(rng, np.zeros(50)), DetectSettings(), fingerprint="a")
    judged = Judged.of(records, cases, calibration)
    _, alignment, _ = summarize(judged)
    assert alignment.comparison.auc.low <= alignment.comparison.auc.value
    table = table_rows(judged, calibration.thresholds, None)
    assert len(table) == 60
    assert "margin step_displacement" in table[0]
    one_class = [Case(c.condition, "clean") for c in cases]
    (summary,) = summarize(Judged.of(records, one_class))
    assert summary.network is None


def test_prompts_that_would_mislead_are_left_out(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,label\ncat,\n,clean\ncat,clean\ndog,memorized\ncat ,\n,\n\n")
    with pytest.warns(UserWarning, match="2 prompts are (blank|repeats) and were left out") as told:
        cases = read_cases(path)
    assert len(told) == 2
    assert cases == [Case("cat", "clean"), Case("dog", "memorized")]
    path.write_text('prompt\n""\n" "\n')
    with (
        pytest.warns(UserWarning, match="2 prompts are blank"),
        pytest.raises(ValueError, match="holds only blank prompts"),
    ):
        read_cases(path)
    path.write_text("prompt,label\ncat,clean\ncat,memorized\n")
    with pytest.raises(ValueError, match="'cat' is labelled clean and memorized"):
        read_cases(path)


def test_what_is_known_of_chosen_captions_is_kept():
    """Of those that the model's own truth names, others are not known."""
    from sharpjax.runs.cases import own_cases

    truths = sj.bench.drawings().truths
    known = {verdict: next(t.caption for t in truths if t.verdict == verdict)
             for verdict in ("between", "memorized")}  # fmt: skip
    folder = zoo.find("drawings")
    chosen = [known["between"], "a unicycle", known["memorized"]]
    cases = own_cases(LatentDiffusion, folder, chosen)  # its class says that it takes prompts
    assert [case.condition for case in cases] == chosen
    assert [case.verdict for case in cases] == ["between", None, "memorized"]
