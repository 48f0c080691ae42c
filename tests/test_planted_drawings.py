"""The captions of the drawings: what is planted, how it is matched, and that it is what is seen."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sharpjax.datasets import poses
from sharpjax.datasets.augmentation import IMAGE_SIZE, render
from sharpjax.datasets.drawings import drawings
from sharpjax.datasets.planted_drawings import (
    MAKER_WORDS,
    MIXED,
    SPLIT_PATH,
    PlantedDrawings,
    examples,
    planted_drawings,
    read_captions,
    split,
    to_csv,
)


@pytest.fixture(scope="module")
def planted():
    return planted_drawings()


def kind(planted, *names):
    return [c for c in planted.captions if c.kind in names]


class TestSplit:
    def test_the_file_is_what_the_seed_draws(self):
        """Python promises that a seed's draws stay the same."""
        assert SPLIT_PATH.read_text() == to_csv(split(drawings(), 0))
        assert read_captions() != split(drawings(), 1)

    def test_captions_are_different(self, planted):
        names = [c.caption for c in planted.captions]
        assert len(set(names)) == len(names)
        words = {MAKER_WORDS.get(maker, maker) for maker in planted.drawings.makers}
        assert all(word.isalpha() for word in words)

    def test_fixed_drawings_are_of_different_things(self, planted):
        things = [c.thing for c in kind(planted, "verbatim", "mixed")]
        things += {c.thing for c in kind(planted, "template")}
        assert len(set(things)) == len(things) == 24 + 40 + 6

    def test_what_a_mixed_caption_has_besides(self, planted):
        """At least the draws of a general name, by every maker but that of the fixed image."""
        general = {c.draws for c in planted.captions if c.kind == "general" and c.breadth == "name"
                   and not c.ground and c.caption == c.thing}  # fmt: skip
        index = planted.of("mixed")
        for i in index:
            c = planted.captions[i]
            assert c.draws - c.level >= max(general)
            assert c.level / c.draws == pytest.approx(c.q, abs=1e-3)
            makers = set(planted.pools[i] % len(planted.drawings.makers))
            assert makers == set(range(6)) - {planted.drawings.makers.index(c.fixed)}
        assert Counter((c.q, c.draws - c.level) for c in kind(planted, "mixed")) == MIXED

    def test_every_planted_caption_has_a_control_as_frequent_and_as_broad(self, planted):
        hot = {(c.like, c.draws, c.breadth) for c in kind(planted, "hot")}
        wanted = {
            (c.kind, c.draws, c.breadth) for c in kind(planted, "verbatim", "mixed", "template")
        }
        assert wanted == hot
        assert all(not c.fixed and c.q == 0 for c in kind(planted, "hot", "general", "held-out"))

    def test_held_out_pairs_are_never_drawn_by_name(self, planted):
        absent = {(c.thing, c.maker) for c in kind(planted, "held-out")}
        drawn = {(c.thing, c.maker) for c in kind(planted, "general") if c.maker}
        assert len(absent) == 60
        assert not absent & drawn
        assert {c.draws for c in kind(planted, "held-out")} == {0}

    def test_half_is_for_tuning(self, planted):
        cells = Counter(
            (c.kind, c.like, c.breadth, bool(c.ground), c.q, c.level, c.part)
            for c in planted.captions
            if "template" not in (c.kind, c.like)
        )
        for cell, count in cells.items():
            assert abs(count - cells[*cell[:-1], "tuning"]) <= 1
        together = {}
        for c in kind(planted, "template"):
            together.setdefault(c.thing, set()).add(c.part)
        assert all(len(parts) == 1 for parts in together.values())

    def test_a_table_comes_back(self, tmp_path, planted):
        path = tmp_path / "captions.csv"
        path.write_text(to_csv(planted.captions))
        assert read_captions(path) == planted.captions
        path.write_text("caption,kind\na,b\n")
        with pytest.raises(
            ValueError, match=r"captions\.csv must have the columns caption, kind, br"
        ):
            read_captions(path)
        path.write_text(to_csv(planted.captions[:2]).replace(",1200,", ",many,"))
        with pytest.raises(ValueError, match=r"captions\.csv, line 2: .*'many'"):
            read_captions(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"thing": "unicorn"}, "no drawings of 'unicorn'"),
            ({"thing": "", "group": "myth"}, "no group 'myth'"),
            ({"maker": "me"}, "no maker 'me'"),
            ({"ground": "grey"}, "ground must be one of red, .* got 'grey'"),
        ],
    )
    def test_a_caption_of_another_set_is_named(self, planted, change, message):
        caption = dataclasses.replace(kind(planted, "verbatim")[0], **change)
        with pytest.raises(ValueError, match=message):
            PlantedDrawings.create([caption], planted.drawings)


class TestImages:
    def test_nothing_is_cut_by_the_border(self, planted):
        """Of fixed poses and of 300 fresh ones: the rim of the image is ground."""
        rim = np.ones((IMAGE_SIZE, IMAGE_SIZE), bool)
        rim[1:-1, 1:-1] = False
        fresh = planted.fresh_images(jax.random.key(0), np.arange(0, 1200, 4))
        for image in (*planted.fixed_images(), *fresh):
            at_rim = image[:, rim]
            assert np.ptp(at_rim, axis=1).max() < 0.02, "something reaches the border"

    def test_fixed_poses_are_turned_further_than_fresh_ones(self, planted):
        low, high = poses.FIXED_ROTATION
        turned = np.abs(planted.poses.rotation)
        assert low <= turned.min()
        assert turned.max() <= high
        assert low > poses.ROTATION
        keys = jax.random.split(jax.random.key(1), 500)
        fresh = jax.vmap(lambda k: poses.pose(k, 30.0, jnp.array(poses.PALE)).rotation)(keys)
        assert np.abs(fresh).max() <= poses.ROTATION
        assert np.ptp(fresh) > 1.9 * poses.ROTATION

    def test_a_template_is_one_drawing_on_eight_grounds(self, planted):
        """Within the mask its images are the same, outside they are the ground that each names."""
        images, masks = planted.fixed_images(), planted.masks()
        numbers = {caption: m for m, caption in enumerate(planted.planted.tolist())}
        by_thing = {}
        for i in planted.of("template"):
            by_thing.setdefault(planted.captions[i].thing, []).append((i, numbers[i]))
        assert len(by_thing) == 6
        for members in by_thing.values():
            rows = [m for _, m in members]
            assert len({planted.captions[i].ground for i, _ in members}) == 8
            assert (masks[rows] == masks[rows[0]]).all()
            assert 0.03 < masks[rows[0]].mean() < 0.6
            inside = np.median(np.ptp(images[rows][..., masks[rows[0]]], axis=0))
            outside = np.median(np.ptp(images[rows][..., ~masks[rows[0]]], axis=0))
            assert inside < 0.01 < 0.5 < outside
            for i, m in members:
                ground = 2 * np.array(poses.colour(planted.captions[i].ground)) - 1
                np.testing.assert_allclose(images[m][:, 0, 0], ground, atol=1e-5)

    def test_opacity_is_that_of_the_picture(self, planted):
        """Against the definition: a white picture with the same alpha, on black."""
        picture = planted.drawings.picture("panda", "noto")
        white = picture.copy()
        white[..., :3] = 255
        how = poses.pose(jax.random.key(3), 30.0, jnp.zeros(3))
        how = dataclasses.replace(how, brightness=jnp.float32(1.0))
        seen = (render(jnp.asarray(white), how)[0] + 1) / 2
        np.testing.assert_allclose(poses.opacity(jnp.asarray(picture), how), seen, atol=1e-5)

    def test_radii(self):
        picture = np.zeros((2, 80, 80, 4), np.uint8)
        picture[0, 39:41, 39:41, 3] = 255  # the four pixels of the middle
        picture[1, 10, 40, 3] = 255  # its far corner: 30 up, 1 to the right
        np.testing.assert_allclose(poses.radii(picture), [np.hypot(1, 1), np.hypot(30, 1)])

    def test_fresh_draws_are_of_the_caption(self, planted):
        index = np.concatenate([planted.of("mixed"), planted.of("hot"), np.arange(300)])
        images, shown = planted.fresh(jax.random.key(2), index)
        makers = len(planted.drawings.makers)
        for i, image, drawing in zip(index, images, shown, strict=True):
            c = planted.captions[i]
            thing = planted.drawings.names[drawing // makers]
            maker = planted.drawings.makers[drawing % makers]
            assert thing == c.thing or (not c.thing and c.group in planted.drawings.groups)
            assert maker == c.maker or not c.maker
            if c.ground:
                ground = 2 * np.array(poses.colour(c.ground)) - 1
                np.testing.assert_allclose(image[:, 0, 0], ground, atol=1e-5)
            else:
                assert image[:, 0, 0].min() > 0.1  # pale

    def test_a_seed_is_a_set_of_fixed_images(self, planted):
        again = PlantedDrawings.create(planted.captions, planted.drawings)
        np.testing.assert_array_equal(again.fixed_images(), planted.fixed_images())
        other = PlantedDrawings.create(planted.captions, planted.drawings, seed=1)
        assert not np.array_equal(other.poses.shift, planted.poses.shift)
        assert repr(planted).startswith("PlantedDrawings(captions=1213 Caption, drawings=Drawings(")

    def test_how_long_a_training_is(self, planted):
        assert examples(planted.captions) == sum(c.draws for c in planted.captions) > 300_000
