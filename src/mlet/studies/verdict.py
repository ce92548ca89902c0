"""What a study says, in sentences."""

from __future__ import annotations

from mlet.studies.reductions import mean_of, mean_reduction, only_bounds, points_of
from mlet.studies.results import OUTCOMES, ArmResult, Outcome, Panel, StudyResult


def help_paragraphs(result: StudyResult) -> tuple[list[str], list[str]]:
    """Where MLET helped, and where it did not: sentences for each."""
    helped, not_helped = [], []
    for panel in result.panels:
        better, worse, unclear = (
            [arm for arm in panel.two_layer if panel.outcome(arm) == kind] for kind in OUTCOMES
        )
        if better:
            helped.append(f"{panel.title}: {_list(panel, better)}.")
        if worse:
            not_helped.append(f"{panel.title}: worse than SLT at {_list(panel, worse)}.")
        if unclear:
            not_helped.append(
                f"{panel.title}: {len(unclear)} of {len(panel.two_layer)} arms cannot be told "
                f"apart from SLT with these seeds ({_range(panel, unclear)})."
            )
    return helped, not_helped


def data_sentences(result: StudyResult) -> list[str]:
    """Of each data set: what click rates alone give, where that is a reason for doubt; how many
    test rows hold a category that training never saw, of which no method knows anything; and
    whether rows have weights, and groups."""
    task = result.study.task
    sentences = [found.sentence(name, task) for name, found in result.biases.items()]
    unseen = {panel.dataset: panel.unseen_share for panel in result.panels}
    sentences += [
        f"{name}: {share:.1%} of the test rows hold a category that training never saw."
        for name, share in unseen.items()
    ]
    for name, schema in result.schemas.items():
        if schema.weighted:
            sentences.append(
                f"{name}: rows count by their weights, in training and in every metric here."
            )
        if schema.group is not None:
            sentences.append(
                f"{name}: GAUC is the AUC within the rows of one {schema.group!r}, averaged by "
                f"rows; arms are not chosen by it."
            )
    return sentences


def finding(panel: Panel) -> str | None:
    """What a comparison found, in one sentence: of its best MLET arms by mean reduction, what width
    they are worth; None without MLET arms."""
    methods = {
        method.name: [(panel, arm) for arm in panel.two_layer if arm.method == method]
        for method in panel.mlet_methods
    }
    methods = {name: pairs for name, pairs in methods.items() if points_of(pairs)}
    if not methods:
        return _nothing_compared(panel)
    name = max(methods, key=lambda name: mean_of(points_of(methods[name])))
    arms = [arm for _, arm in methods[name]]
    found = [panel.outcome(arm) for arm in arms]
    better, worse = found.count("better"), found.count("worse")
    if better and not worse:
        gist = "two layers help on this data"
    elif worse and not better:
        gist = "two layers cost quality on this data"
    elif better:
        gist = "two layers help at some dimensions and cost quality at others"
    else:
        gist = "two layers make no difference that these seeds can tell"
    return (
        f"In one sentence: {gist}; {_worth(methods[name])}, with {better} of {len(arms)} "
        f"dimensions better than a single layer and {worse} worse."
    )


def _worth(pairs: list[tuple[Panel, ArmResult]]) -> str:
    """What width the arms of a method are worth, where that can be read off."""
    k = _k_of(pairs[0][1])
    if only_bounds(points_of(pairs)):
        return f"what width {k} is worth cannot be read off, as no single layer is as good or bad"
    return f"{k} is worth a table {mean_reduction(pairs)} as wide"


def _nothing_compared(panel: Panel) -> str | None:
    if not panel.mlet or panel.two_layer:
        return None
    return (
        f"In one sentence: there was nothing to compare, since inner_dim: auto leaves all tables "
        f"ordinary at d = {', '.join(str(arm.dim) for arm in panel.mlet)} (mlet describe says why)."
    )


def _k_of(arm: ArmResult) -> str:
    k = arm.method.changes["inner_dim"]
    return "k as chosen for each field" if k == "auto" else f"k = {k}"


def panel_verdict(panel: Panel) -> list[str]:
    """One panel, for a reader in a hurry: where MLET helped, where it did not, what to doubt."""
    sentences = []
    headline = panel.task.headline.label
    for method in panel.mlet_methods:
        for outcome, what in (
            ("better", f"beat SLT of the same dimension in test {headline} at"),
            ("worse", f"was worse than SLT of the same dimension in test {headline} at"),
            ("unclear", "cannot be told apart from SLT, with these seeds, at"),
        ):
            arms = [
                arm
                for arm in panel.two_layer
                if arm.method == method and panel.outcome(arm) == outcome
            ]
            texts = [f"d={arm.dim} ({panel.gain(arm).mean:+.4f})" for arm in arms]
            if texts:
                k = method.changes["inner_dim"]
                sentences.append(f"MLET with k={k} {what} {', '.join(texts)}.")
    ordinary = [arm.dim for arm in panel.mlet if arm.inner_dim is None]
    if ordinary and panel.two_layer:
        dims = ", ".join(map(str, ordinary))
        sentences.append(f"At d = {dims} inner_dim: auto trains ordinary tables, as SLT does.")
    edge = [arm for arm in panel.arms if arm.tuning.at_edge]
    if edge:
        sentences.append(
            f"The chosen learning rate is the largest or smallest tried for "
            f"{', '.join(map(_arm_text, edge))}; a wider grid may serve these better."
        )
    if failed := failed_settings(panel):
        sentences.append(f"Diverged, and left out: {', '.join(failed)}.")
    return sentences


def failed_settings(panel: Panel) -> list[str]:
    """Names of the arms and step sizes that some seed failed with."""
    return [
        f"{arm.method.name}-d{arm.dim}-lr{rate:g}"
        for arm in panel.arms
        for rate in arm.tuning.failed
    ]


def _arm_text(arm: ArmResult) -> str:
    name = arm.method.name if arm.method.kind == "peer" else arm.method.kind.upper()
    k = f" k={arm.inner_dim}" if arm.inner_dim else ""
    return f"{name} d={arm.dim}{k}"


def counts(result: StudyResult) -> dict[Outcome, int]:
    """How many MLET arms are better, worse and not told apart, over the whole study."""
    outcomes = [p.outcome(arm) for p in result.panels for arm in p.two_layer]
    return {kind: outcomes.count(kind) for kind in OUTCOMES}


def expected_by_chance(result: StudyResult) -> float:
    """Arms that would be called better, and as many worse, if there were no difference at all.

    The intervals are 95 % ones: of many arms, one in forty lies outside on either side by chance.
    """
    return sum(len(panel.two_layer) for panel in result.panels) / 40


def _list(panel: Panel, arms: list[ArmResult]) -> str:
    return ", ".join(f"d={arm.dim} k={arm.inner_dim} ({panel.gain(arm).mean:+.4f})" for arm in arms)


def _range(panel: Panel, arms: list[ArmResult]) -> str:
    gains = [panel.gain(arm).mean for arm in arms]
    return f"{min(gains):+.4f} to {max(gains):+.4f} {panel.task.headline.label}"
