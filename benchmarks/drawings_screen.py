"""Which look at a path tells copies, on the drawings: quantity, step, start and number of noises.

    python benchmarks/drawings_screen.py [--images 16]
    python benchmarks/drawings_screen.py --chosen effective_dimension 12 --starts 0.1

Of memorized captions whose images are copies sometimes (mixed ones, by their share q), of verbatim
and template ones, and of clean general ones, every image is drawn with each look recorded and none
dropped.  Prints, as Markdown, for every start (a share of the steps without guidance) and look:

1. how well its value tells copies: AUC of copies against other images *of the same captions*
   (within: the mean over captions that have both) and against images of clean captions (pooled);
2. what choosing the best of 5 by it leaves: copies, and images of the right thing that are no
   copies (exact over all choices of 5 of a caption's images);
3. what a threshold that drops some of the clean captions' images (`--dropped`) leaves: images that
   pass, copies among these, and the share of copies that it misses; and of 16 tries, where what
   never passes shows nothing, copies and images of the right thing that are none.

That is on the tuning part.  With `--chosen` one look is tried on the captions of the *test* part,
by the threshold that the tuning part's clean captions set; and the bound on the copies among the
images that pass (`sharpjax.mitigation.copies_bound`), whose miss rate is the tuning captions', is
held against the share that was found, caption by caption.  Samples are kept in `--output`, and not
drawn again.
"""

import argparse
from math import comb
from pathlib import Path

import jax
import numpy as np

import sharpjax as sj
from sharpjax.datasets.planted_drawings import planted_drawings
from sharpjax.mitigation.copies_bound import copies_bound, miss_rate, pass_rate
from sharpjax.mitigation.screen import MAX_TRIES, QUANTITIES, Look, screened
from sharpjax.models.load import find
from sharpjax.runs.truth_of_drawings import load_judge

STEPS, CHOICE = 25, 5
LOOKS = {
    "score_difference": (8, 9, 10, 12),
    "effective_dimension": (8, 10, 12, 14, 16),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="drawings")
    parser.add_argument("--output", type=Path, default=Path("runs/drawings-screen"))
    parser.add_argument("--chosen", nargs=2, metavar=("QUANTITY", "STEP"))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--captions", type=int, default=5, help="of each kind")
    parser.add_argument("--starts", type=float, nargs="*", default=[0.0, 0.1, 0.2, 0.3])
    parser.add_argument("--dropped", type=float, default=0.1, help="share of clean images")
    arguments = parser.parse_args()
    dropped = arguments.dropped
    directory = find(arguments.model).path
    model, planted = sj.load(arguments.model), planted_drawings()
    judge, _ = load_judge(directory, planted, model.vae)
    bench = sj.bench.drawings(directory)
    arguments.output.mkdir(parents=True, exist_ok=True)

    def seen(part, free):
        """Values by look, copies, images of the right thing that are none, and rows by kind."""
        kinds = chosen(bench.truths, part, arguments.captions)
        captions = [caption for own in kinds.values() for caption in own]
        looks = LOOKS
        if part == "test":
            looks = {arguments.chosen[0]: (int(arguments.chosen[1]),)}
        found = {}
        for quantity, steps in looks.items():
            steps = [step for step in steps if step > free * STEPS]
            path = arguments.output / f"{part}-{free:g}-{quantity}.npz"
            values, images = drawn(model, captions, free, quantity, steps, path, arguments)
            found |= {(quantity, step): values[..., k] for k, step in enumerate(steps)}
        asked = [caption for caption in captions for _ in range(arguments.images)]
        judged = judge(np.clip(images, -1, 1), asked)
        shape = len(captions), arguments.images
        copied = judged.copied.reshape(shape)
        ends = np.cumsum([0, *(len(own) for own in kinds.values())])
        rows = {kind: slice(*ends[i : i + 2]) for i, kind in enumerate(kinds)}
        return found, copied, judged.fidelity.reshape(shape) * ~copied, rows

    for free in arguments.starts:
        print(f"\n## {free:.0%} of the steps without guidance", flush=True)
        found, copied, right, rows = seen("tuning", free)
        limits = {
            (quantity, step): np.quantile(QUANTITIES[quantity] * values[rows["clean"]], dropped)
            for (quantity, step), values in found.items()
        }
        if arguments.chosen is None:
            tables(found, copied, right, rows, limits)
            continue
        look = arguments.chosen[0], int(arguments.chosen[1])
        passes = QUANTITIES[look[0]] * found[look] >= limits[look]
        memorized = np.ones(len(passes), bool)
        memorized[rows["clean"]] = False
        missed = miss_rate((passes & copied).sum(axis=1)[memorized], copied.sum(axis=1)[memorized])
        print(f"\nmiss rate of the tuning captions: {missed}")
        found, copied, right, rows = seen("test", free)
        tables(found, copied, right, rows, limits)
        bounds(QUANTITIES[look[0]] * found[look] >= limits[look], copied, right, rows, missed)


def bounds(passes, copied, right, rows, missed):
    """Of each kind, what passes and what was promised of it."""
    print("\n| captions | | images that pass | captions of which some do | copies among these "
          "| right and no copy among these | mean bound | violated |")  # fmt: skip
    print("| --- " * 8 + "|")
    for kind, at in rows.items():
        own, there = passes[at], passes[at].any(axis=1)
        told = []
        for passed, copies in zip(own[there], copied[at][there], strict=True):
            bound = copies_bound(missed, pass_rate(int(passed.sum()), len(passed)))
            told.append((bound, (passed & copies).sum() / passed.sum()))
        cells = [f"{len(own)}", f"{own.mean():.2f}", f"{there.sum()}"]
        if told:
            bound, share = np.array(told).T
            cells += [f"{copied[at][own].mean():.3f}", f"{right[at][own].mean():.2f}",
                      f"{bound.mean():.2f}", f"{(share > bound).sum()} of {len(told)}"]  # fmt: skip
        print(f"| {kind} | " + " | ".join(cells + [""] * (7 - len(cells))) + " |")


def chosen(truths, part, count):
    """Captions of each kind: memorized ones by share, and clean general ones."""
    kinds = {}
    for t in truths:
        if t.part != part:
            continue
        if t.verdict == "memorized" and t.kind in ("verbatim", "mixed", "template"):
            name = f"mixed q={t.q:g}" if t.kind == "mixed" else t.kind
        elif t.verdict == "clean" and t.kind == "general" and not t.ground:
            name = "clean"
        else:
            continue
        kinds.setdefault(name, []).append(t.caption)
    most = {"clean": 4 * count}
    return {
        name: own[:: max(len(own) // most.get(name, count), 1)][: most.get(name, count)]
        for name, own in sorted(kinds.items())
    }


def drawn(model, captions, free, quantity, steps, path, arguments):
    """Values `(captions, images, looks)` and images, from the file if they are there."""
    if path.is_file():
        kept = np.load(path)
        if kept["captions"].tolist() == captions and kept["steps"].tolist() == list(steps):
            return kept["values"], kept["images"]
    none = -1e30 * QUANTITIES[quantity]  # passes everything
    looks = [Look(quantity=quantity, step=step, threshold=none) for step in steps]
    found = screened(
        model, captions, jax.random.key(5), looks=looks, num_images=arguments.images, max_tries=1,
        guidance=model.default_guidance, free=free, num_steps=STEPS, batch_size=32,
    )  # fmt: skip
    values = np.array([[tries[0] for tries in row] for row in found.values])
    latents = found.examples.reshape(-1, *model.shape)
    images = np.concatenate([model.decode(latents[i : i + 64]) for i in range(0, len(latents), 64)])
    np.savez(path, captions=captions, steps=steps, values=values, images=images)
    return values, images


def tables(found, copied, right, rows, limits):
    """One line a look, a column a kind."""
    kinds = [kind for kind in rows if kind != "clean"]
    print("\ncopies | right and no copy, as drawn: " + "; ".join(
        f"{kind} {copied[at].mean():.2f} | {right[at].mean():.2f}" for kind, at in rows.items()
    ))  # fmt: skip
    heads = ["look", "within", "pooled"]
    heads += [f"best of {CHOICE}, {kind}" for kind in kinds] + [f"passes, {kind}" for kind in rows]
    print("\n| " + " | ".join(heads) + " |\n" + "| --- " * len(heads) + "|")
    for (quantity, step), values in found.items():
        openness = QUANTITIES[quantity] * values  # larger: less like a copy
        clean = openness[rows["clean"]].ravel()
        limit = limits[quantity, step]
        memorized = np.concatenate([openness[rows[kind]] for kind in kinds])
        theirs = np.concatenate([copied[rows[kind]] for kind in kinds])
        inside = [auc(-v, c) for v, c in zip(memorized, theirs, strict=True)]
        inside = [one for one in inside if one is not None]
        pooled = auc(
            -np.concatenate([memorized[theirs], clean]),
            np.r_[np.ones(theirs.sum(), bool), np.zeros(len(clean), bool)],
        )
        cells = [f"{quantity} before step {step}"]
        cells.append(f"{np.mean(inside):.2f} ({len(inside)})" if inside else "")
        cells.append("" if pooled is None else f"{pooled:.2f}")
        for kind in kinds:
            at = rows[kind]
            best = [
                (ranked(v, c), ranked(v, r))
                for v, c, r in zip(openness[at], copied[at], right[at], strict=True)
            ]
            cells.append("{:.2f} \\| {:.2f}".format(*np.mean(best, axis=0)))
        for at in rows.values():
            passes = openness[at] >= limit
            share = copied[at][passes].mean() if passes.any() else np.nan
            missed = passes[copied[at]].mean() if copied[at].any() else np.nan
            # a caption whose images never pass shows nothing
            shown = 1 - (1 - passes.mean(axis=1)) ** MAX_TRIES
            some = np.maximum(passes.sum(axis=1), 1)
            ends = [(shown * (passes * e[at]).sum(axis=1) / some).mean() for e in (copied, right)]
            cells.append(f"{passes.mean():.2f}, copies {share:.2f}, missed {missed:.2f}; in "
                         f"{MAX_TRIES} tries {ends[0]:.2f} \\| {ends[1]:.2f}")  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def auc(values, positive):
    """The probability that a positive one lies above another, or None."""
    ours, others = values[positive], values[~positive]
    if not len(ours) or not len(others):
        return None
    above = (ours[:, None] > others).mean() + (ours[:, None] == others).mean() / 2
    return float(above)


def ranked(openness, outcome):
    """The mean outcome of the best of `CHOICE`, over all choices of so many images."""
    order = np.argsort(-openness)  # the best first
    n = len(order)
    weights = np.array([comb(n - 1 - place, CHOICE - 1) for place in range(n)]) / comb(n, CHOICE)
    return float(weights @ np.asarray(outcome, float)[order])


if __name__ == "__main__":
    main()
