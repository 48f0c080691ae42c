"""The judge of the drawings, and the truth that it makes of samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

from sharpjax.datasets import poses
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.mitigation import drawing_judge
from sharpjax.mitigation.drawing_judge import NOTHING, DrawingJudge, control, labels
from sharpjax.networks.concept_classifier import ConceptClassifier
from sharpjax.runs import truth_of_drawings
from sharpjax.runs.truth_of_drawings import (
    DrawingTruth,
    exact_interval,
    measured,
    read_truth,
    truth,
    verdict,
)
from sharpjax.similarity import likeness, outline_correlation, standardised


def seen(images):
    """An autoencoder that blurs a little."""
    return 0.5 * images + 0.25 * (np.roll(images, 1, axis=-1) + np.roll(images, -1, axis=-1))


@pytest.fixture(scope="module")
def planted():
    return planted_drawings()


@pytest.fixture(scope="module")
def judge(planted):
    return DrawingJudge(planted, seen, 0.9)


class TestCopies:
    def test_likeness_is_the_mean_of_two_correlations(self, planted):
        images, others = planted.fixed_images()[:3], planted.fixed_images()[3:7]
        pixels = [x - x.mean(axis=(2, 3), keepdims=True) for x in (images, others)]
        colours = standardised(pixels[0]) @ standardised(pixels[1]).T
        wanted = (colours + outline_correlation(images, others)) / 2
        np.testing.assert_allclose(likeness(images) @ likeness(others).T, wanted, atol=1e-10)

    def test_a_repeated_image_is_a_copy_of_its_own(self, planted, judge):
        captions = [planted.captions[i].caption for i in planted.planted]
        found = judge(seen(planted.fixed_images()), captions)
        assert found.copied.all()
        assert not found.turned.any()
        np.testing.assert_allclose(found.own, 1, atol=1e-6)
        wrong = judge(seen(planted.fixed_images()), ["pear"] * len(captions))
        assert wrong.turned.all()
        assert np.isnan(wrong.own).all()
        assert wrong.nearest[:64] == captions[:64]

    def test_a_template_on_another_ground_is_a_copy_of_its_own(self, planted, judge):
        numbers = {caption: m for m, caption in enumerate(planted.planted.tolist())}
        index = planted.of("template")[:8]
        images = seen(planted.fixed_images()[[numbers[i] for i in index]])
        captions = [planted.captions[i].caption for i in index]
        found = judge(images, captions[1:] + captions[:1])
        assert found.copied.all()
        assert not found.turned.any()

    def test_another_pose_is_no_copy(self, planted, judge):
        index = planted.of("mixed", "hot")
        captions = [planted.captions[i].caption for i in index]
        found = judge(seen(planted.fresh_images(jax.random.key(0), index)), captions)
        assert found.copied.mean() < 0.05
        assert np.isnan(found.fidelity).all()

    @pytest.mark.slow
    def test_the_threshold_is_of_controls(self, planted):
        """Recomputed: its false-alarm rate on drawings that did not set it is what it says."""
        limits = control(planted, seen, repeats=2)
        assert 0.6 < limits.threshold < 0.98
        assert limits.found == 1.0
        rate = limits.false_alarms / limits.renderings
        # the quantile rests on the three largest of 668, so the rate may be a few times its own
        assert limits.low <= rate <= limits.high
        assert rate < 4 * (1 - drawing_judge.QUANTILE)
        drawings = np.setdiff1d(np.arange(len(planted.radii)), planted.fixed)
        assert limits.renderings == 2 * (len(drawings) - len(drawings) // 2)
        pale = np.tile(np.array(poses.PALE, np.float32), (len(drawings), 1))
        images = seen(planted.render(jax.random.key(5), drawings, pale))
        alike = likeness(images) @ likeness(seen(planted.fixed_images())).T
        assert (alike.max(axis=1) > limits.threshold).mean() < 0.01


class TestThings:
    def classifier(self, planted):
        return ConceptClassifier(
            labels=labels(planted), block_out_channels=(8, 8), rngs=nnx.Rngs(0)
        )

    def test_it_says_thing_and_maker_over_all_the_others(self, planted, monkeypatch):
        """By sums over makers and over things, and nothing where that is likelier than either."""
        judge = DrawingJudge(planted, seen, 0.9, self.classifier(planted))
        of = planted.drawings
        table = np.zeros((3, len(labels(planted))))

        def put(row, thing, maker, value):
            place = of.names.index(thing) * len(of.makers) + of.makers.index(maker)
            table[row, place] = value

        put(0, "pear", "noto", 0.3)
        put(0, "pear", "twemoji", 0.25)
        put(0, "apple", "noto", 0.4)  # the likeliest drawing, but not the likeliest thing
        table[0, -1] = 0.05
        put(1, "apple", "noto", 0.4)
        table[1, -1] = 0.6
        put(2, "bus", "openmoji", 1.0)
        monkeypatch.setattr(drawing_judge, "probabilities", lambda _, x: table[: len(x)])
        images = np.zeros((3, 3, 64, 64), np.float32)
        things, makers = judge.shown(images)
        assert things == ["pear", NOTHING, "bus"]
        assert makers == ["noto", NOTHING, "openmoji"]
        fidelity = judge(images, ["pear", "apple", "vehicle"]).fidelity
        assert fidelity.tolist() == [1, 0, 1]
        assert judge(images, ["fruit", "fruit", "fruit"]).fidelity.tolist() == [1, 0, 0]

    def test_a_classifier_of_other_things_is_refused(self, planted):
        other = ConceptClassifier(labels=("a", "b"), block_out_channels=(8,), rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="must know the 738 drawings and nothing"):
            DrawingJudge(planted, seen, 0.9, other)

    def test_mistakes(self, planted, judge):
        with pytest.raises(ValueError, match="prompt must be one of the 1213 captions, got 'x'"):
            judge(np.zeros((1, 3, 64, 64)), ["x"])
        with pytest.raises(ValueError, match="no classifier"):
            judge.shown(np.zeros((1, 3, 64, 64)))


class TestTruth:
    @pytest.mark.parametrize(("count", "n"), [(0, 8), (1, 8), (2, 8), (8, 8), (5, 32)])
    def test_the_interval_is_exact(self, count, n):
        wanted = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
        np.testing.assert_allclose(exact_interval(count, n), wanted, rtol=1e-9)

    def test_verdicts(self):
        def told(*counts, **more):
            return verdict(*counts, **{"planted": True, "false_alarm": 0.005} | more)

        assert told(2, 0, 8) == "memorized"
        assert told(1, 0, 8) == "between"  # chance, but planted
        assert told(1, 0, 8, planted=False) == "clean"
        assert told(0, 2, 8, planted=False) == told(0, 2, 8) == "another"
        assert told(2, 0, 8, false_alarm=0.04) == "between"  # with a worse judge

    def test_what_is_measured(self, planted):
        counts = measured(planted)
        kinds = [planted.captions[i].kind for i in counts]
        assert kinds.count("verbatim") == 24
        assert {counts[i] for i in planted.of("mixed", "hot")} == {32}
        assert {counts[i] for i in planted.of("held-out")} == {8}
        few = measured(planted, most=1)
        cells = {
            (c.kind, c.like, c.q, c.level, c.breadth, bool(c.ground)) for c in planted.captions
        }
        assert len(few) == len(cells)

    def test_counts_of_one_caption(self, planted, judge):
        i = planted.planted[0]
        own, other = seen(planted.fixed_images()[:2])
        fresh = seen(planted.fresh_images(jax.random.key(1), np.full(5, i)))
        # of a verbatim caption every fresh draw is in another pose
        samples = np.concatenate([np.stack([own, own, other]), fresh])
        found = truth(samples, i, planted, judge, false_alarm=0.005)
        assert (found.samples, found.copies, found.others) == (8, 2, 1)
        assert found.copies_of == planted.captions[planted.planted[1]].caption
        assert found.verdict == "memorized"
        assert (found.low, found.high) == exact_interval(2, 8)

    def test_a_run_is_finished_once_and_read_again(self, planted, judge, tmp_path, monkeypatch):
        """On a model that draws repeated images; resumed, nothing is drawn again."""
        images = seen(planted.fixed_images())
        chosen = {int(planted.planted[0]): 4, 3: 2}
        monkeypatch.setattr(truth_of_drawings, "measured", lambda *_, most: chosen)
        drawn = []

        class Model:
            default_batch, takes_prompts, has_conditions = 4, False, True
            shape = image_shape = (3, 64, 64)
            conditions = tuple(c.caption for c in planted.captions)
            default_guidance = 1.0
            unet = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
            from sharpjax.schedules import Schedule

            schedule = Schedule.create()

            def check(self, names):
                pass

            def noise_shape(self, height, width):
                return self.shape

            def encode(self, names):
                return jnp.array([self.conditions.index(name) for name in names])

            def sample(self, encoded, **_):
                drawn.append(len(encoded))
                copies = np.isin(np.asarray(encoded), planted.planted)
                return np.where(copies[:, None, None, None], images[0], 0)

        options = {"fingerprint": "a", "false_alarm": 0.005, "num_steps": 2}
        rows = truth_of_drawings.measure(Model(), planted, judge, tmp_path, **options)
        assert [(r.samples, r.copies, r.verdict) for r in rows] == [
            (4, 4, "memorized"),
            (2, 0, "clean"),
        ]
        count = len(drawn)
        again = truth_of_drawings.measure(Model(), planted, judge, tmp_path, **options)
        assert len(drawn) == count
        assert [str(r) for r in again] == [str(r) for r in rows]
        back = read_truth(tmp_path / "truth.csv")
        assert [dataclasses.astuple(r)[:10] for r in back] == [
            dataclasses.astuple(r)[:10] for r in rows
        ]
        with pytest.raises(ValueError, match="seed"):
            truth_of_drawings.measure(Model(), planted, judge, tmp_path, **options, seed=1)
        (tmp_path / "truth.csv").write_text("caption,kind\na,b\n")
        with pytest.raises(ValueError, match=r"truth\.csv must have the columns caption, kind, q"):
            read_truth(tmp_path / "truth.csv")

    def test_the_first_columns_are_those_that_others_read(self):
        names = [f.name for f in dataclasses.fields(DrawingTruth)]
        assert names[:10] == [
            "caption", "kind", "q", "level", "breadth", "samples", "copies", "low", "high",
            "verdict",
        ]  # fmt: skip
