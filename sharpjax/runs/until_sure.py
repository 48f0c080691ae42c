"""A detection run whose noises stop where the verdict is sure: a run inside for every noise.

The n-th noise is computed of those conditions whose verdict the first n - 1 leave open
(`sharpjax.detection.sequential`), as an ordinary run in a folder `noise-n`; who they are follows
from the runs before, so that a run that was killed goes on.  The records of all are joined in
`results.jsonl`.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from sharpjax.conditional import ConditionalModel, digest
from sharpjax.detection.registry import at
from sharpjax.detection.sequential import UntilSure
from sharpjax.detection.settings import DetectSettings
from sharpjax.rundir.files import append_lines
from sharpjax.rundir.run import RESULTS_NAME, Run
from sharpjax.runs.detect import detect

SINGLE = at("first", "noise")  # statistics with a value of each noise by itself


def until_sure(
    model: ConditionalModel,
    conditions: Sequence[str],
    directory: str | Path,
    settings: DetectSettings,
    rule: UntilSure,
    *,
    fingerprint: str | None = None,
    batch_size: int = 4,
    mesh: Mesh | None = None,
) -> list[dict[str, Any]]:
    """As `detect`, with as many noises of a condition as its verdict takes.

    Args:
        model: any conditional model.
        conditions: all different.
        directory: of the run.
        settings: with the most noises that a condition may have.
        rule: when to stop.
        fingerprint: of the model, which a run goes on with alone; `None`: a digest of its arrays.
        batch_size: conditions at a time.
        mesh: as of `detect`.

    Returns:
        Records as of `detect`, whose lists have from 1 to `settings.num_noises` values.

    Raises:
        ValueError: a statistic that needs several noises, or whole paths, at once; a rule for
            another number of noises; or as `detect`.
        FileExistsError, OSError: as `detect`.
    """
    fingerprint = fingerprint or digest(model)
    if several := [name for name in settings.statistics if name not in SINGLE]:
        raise ValueError(
            f"--until-sure takes statistics of single noises ({', '.join(SINGLE)}), got "
            f"{several[0]}; leave it out of --statistics"
        )
    if rule.most != settings.num_noises:
        raise ValueError(f"the rule is for {rule.most} noises, got {settings.num_noises}")
    conditions = list(conditions)
    run = Run.claim(
        directory,
        "detect",
        {
            "model": fingerprint,
            "conditions": hashlib.sha256(json.dumps(conditions).encode()).hexdigest(),
            "num_conditions": len(conditions),
            "oracle": False,
            **dataclasses.asdict(settings),
            "until_sure": dataclasses.asdict(rule),
        },
        key=["index"],
        fields=["condition"],
    )
    joined: dict[int, dict[str, Any]] = {}
    open_ones = list(range(len(conditions)))
    for number in range(settings.num_noises):
        if not open_ones:
            break
        records = detect(
            model,
            [conditions[i] for i in open_ones],
            run.folder / f"noise-{number + 1}",
            dataclasses.replace(settings, num_noises=1, first_noise=settings.first_noise + number),
            fingerprint=fingerprint,
            batch_size=batch_size,
            mesh=mesh,
        )
        for i, record in zip(open_ones, records, strict=True):
            joined[i] = _join(joined.get(i), record | {"index": i})
        open_ones = [
            i for i in open_ones
            if "network" in joined[i] and not rule.sure(joined[i]["network"][rule.column])
        ]  # fmt: skip
    left = [joined[i] for i in range(len(conditions)) if i not in run.done]
    append_lines(run.folder / RESULTS_NAME, left)
    return [joined[i] for i in range(len(conditions))]


def share_of_noises(
    evaluations: Mapping[str, tuple[str, float, float]],
    records: Sequence[Mapping[str, Any]],
    rule: UntilSure,
) -> dict[str, tuple[str, float, float]]:
    """What statistics cost a condition, of the noises that there are in place of all."""
    counts = [len(r["network"][rule.column]) for r in records if "network" in r]
    share = sum(counts) / (max(len(counts), 1) * rule.most)
    return {name: (part, f * share, t * share) for name, (part, f, t) in evaluations.items()}


def _join(before: dict[str, Any] | None, record: dict[str, Any]) -> dict[str, Any]:
    """One more noise; a condition that failed at one has failed."""
    if before is None or "failed" in record:
        return record
    values = {name: [*before["network"][name], *v] for name, v in record["network"].items()}
    return record | {"network": values}
