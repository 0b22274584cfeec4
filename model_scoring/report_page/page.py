"""The page: the question and its answer, what was tried, and how to repeat it."""

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from model_scoring.counting.plot import shares
from model_scoring.counting.scoring import Score
from model_scoring.counting.settings import RULE_SETS
from model_scoring.report_page import charts
from model_scoring.report_page.drawing import COLOURS, FAINT, THIRD, plain
from model_scoring.report_page.run_folders import Trial
from model_scoring.report_page.subject import Subject

TOP1 = "top\u20111"  # which stays on one line
TEMPLATE = Path(__file__).with_name("template.html")


def text(value: object) -> str:
    """Anything, as HTML."""
    if isinstance(value, dict):
        value = [f"{name} {part}" for name, part in value.items() if part is not None]
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    known = {True: "yes", False: "no", None: "not known"}
    return escape(plain(known[value] if value is None or isinstance(value, bool) else value))


def cell(value: object, form: str = "") -> str:
    """Of a table: numbers in a form, flush right; None, which is sorted last, is a dash."""
    if value is None:
        return '<td class="n">–</td>'
    numeric = "" if isinstance(value, str) else ' class="n"'
    return f'<td{numeric} data-v="{text(value)}">{text(format(value, form))}</td>'


def bar(left: float, right: float) -> str:
    """A cell with a bar of percentages: `left` strong, `right` faint, another colour between."""
    parts = f"--l:{left:.2f};--r:{right:.2f}"
    return f'<td data-v="{left}"><span class="bar" style="{parts}"></span></td>'


def table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[list[str]],
    *,
    sorted_by: int = -1,
    chosen: int | None = None,
) -> str:
    """Rows of cells below column names that sort them."""
    heads = []
    for i, column in enumerate(columns):
        kind = ' class="n"' if any('class="n"' in row[i] for row in rows) else ""
        kind += ' aria-sort="ascending"' if i == sorted_by else ""
        heads.append(f'<th scope="col"{kind}><button type="button">{text(column)}</button></th>')
    lines = (f"<tr{' class=chosen' * (i == chosen)}>{''.join(r)}</tr>" for i, r in enumerate(rows))
    return (
        f'<div class="scroll" role="region" aria-label="{text(title)}" tabindex="0"><table>'
        f"<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def figure(title: str, content: str, explanation: str = "") -> str:
    caption = f"<figcaption><h3>{text(title)}</h3>{text(explanation)}</figcaption>"
    return f"<figure>{caption}{content}</figure>"


def section(title: str, explanation: str, pictures: Iterable[str], *content: str) -> str:
    grid = f'<div class="grid">{"".join(pictures)}</div>'
    head = f"<h2>{text(title)}</h2><p>{text(explanation)}</p>"
    return f"<section>{head}{grid}{''.join(content)}</section>"


def answer(subject: Subject) -> str:
    """The question, a sentence, and the figures that matter."""
    result, known = subject.score, subject.top1 is not None
    published, strict = (result.totals[rules] for rules in RULE_SETS)
    form = "packed file" if "packed file" in subject.files else next(iter(subject.files))
    size, top1 = subject.files[form][1], f"{subject.top1:.2f} %" if known else "–"
    rounded = f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1000:.1f} kB"
    params, ops = (f"{published.params:,.0f}", f"{published.ops / 1e6:,.2f} M")
    rules = "published rules; strict:"
    tiles = (
        ("Accuracy", top1, f"top-1, {subject.images}" if known else "--eval measures it"),
        ("Zeros", f"{100 * result.zeros:.2f} %", f"of {result.parameters:,} weights and biases"),
        ("Parameters", params, f"of 32 bits, {rules} {strict.params:,.0f}"),
        ("Operations", ops, f"on 32 bits, {rules} {strict.ops / 1e6:,.2f}\u00a0M"),
        ("Score", f"{published.score:.5f}", f"{rules} {strict.score:.5f}"),
        ("Size", rounded, f"{size:,} bytes, {form}"),
    )
    shown = (f"<div><dt>{name}</dt><dd>{text(value)}<small>{text(more)}</small></dd></div>"
             for name, value, more in tiles)  # fmt: skip
    sentence = f"{subject.model} with {params} parameters" + f": {top1} {TOP1}" * known
    head = f'<h1>{text(subject.question)}</h1><p class="answer">{text(sentence)}</p>'
    return f'{head}<dl class="tiles">{"".join(shown)}</dl>'


def deciding(trials: Iterable[Trial]) -> str:
    """Which images chose epochs and networks."""
    held = any(trial.history.reported for trial in trials)
    return "training images that were held out" if held else "the validation images"


def tried(subject: Subject, names: dict[Trial, str], chosen: Trial | None) -> str:
    """Accuracy over size, beside the sizes of the files."""
    place, pictures = None, []
    if chosen:
        place = charts.place(chosen)
    elif subject.top1 is not None:
        place = subject.score.totals["published"].params, subject.top1
    if any(trial.history.epochs for trial in names):
        said = f"Top-1 of each network's best epoch on {deciding(names)}, which chose that epoch."
        pictures = [figure("All networks tried", charts.over_size(names, place), said)]
    whole = max(size for _, size in subject.files.values()) / 100
    rows = [[cell(form), cell(size, ","), bar(size / whole, 100 - size / whole), cell(str(path))]
            for form, (path, size) in subject.files.items()]  # fmt: skip
    columns = ("form", "bytes", "size", "file")
    pictures.append(figure("Files", table("files", columns, rows)))
    return section("Accuracy and size", "", pictures)


def training(names: dict[Trial, str], chosen: Trial | None) -> str:
    """Curves of each stage that has any."""
    pictures = []
    for stage, (title, _) in charts.STAGES.items():
        if any(trial.stage == stage and trial.history.epochs for trial in names):
            for what, name in (("val_loss", "Loss"), ("val_top1", "Top-1, %")):
                picture = charts.curves(names, chosen, stage, what)
                pictures.append(figure(f"{name}: stage {stage}, {title}", picture))
    said = f"On {deciding(names)}; the best {charts.CURVES} networks of a stage at most. The thick "
    said += "line is the chosen one, or the stage's best."
    return section("Training", said, pictures) if pictures else ""


def layers(result: Score) -> str:
    """What is left of each layer, and what it costs under both rule sets."""
    first, second = (result.counts[rules] for rules in RULE_SETS)
    found = [layer for layer in zip(result.records, first, second, strict=True) if layer[0].weights]
    ternary, zeros, channels = shares(result, RULE_SETS[0]).values()
    names, rows = [f"{i} {record.name}" for i, (record, *_) in enumerate(found, 1)], []
    for i, (record, *both) in enumerate(found):
        kind = "ternary " * record.ternary + record.kind
        cells = [cell(i + 1), cell(record.name), bar(ternary[i], zeros[i]), cell(zeros[i], ".1f")]
        cells += [cell(channels[i], ".1f"), cell(kind), cell(both[0].format)]
        cells += [cell(bits) for bits in (both[0].weight_bits, both[0].activation_bits)]
        cells += [cell(getattr(count, w), ",.0f") for w in ("params", "ops") for count in both]
        rows.append(cells)
    dense = [100 - a - b for a, b in zip(ternary, zeros, strict=True)]
    parts = {"ternary": ternary, "full precision": dense, "zeros": zeros}
    marks, colours = {"deleted channels": channels}, (*COLOURS[:2], FAINT)
    picture = charts.bars("% of its weights", names, parts, marks, colours)
    pictures = [figure("What is kept", picture)]
    columns = ["#", "layer", "kept", "zeros, %", "deleted channels, %", "kind", "format"]
    columns += ["weight bits", "input bits"]
    for what, name in (("params", "parameters"), ("ops", "operations")):
        one, other = ({rules: [getattr(layer[i], what) for layer in found]}
                      for i, rules in enumerate(RULE_SETS, 1))  # fmt: skip
        picture = charts.bars(f"{name} of 32 bits", names, one, other, (THIRD,))
        pictures.append(figure(name.capitalize(), picture))
        columns += [f"{name}, {rules}" for rules in RULE_SETS]
    said = "Convolutions and linear layers. What has no weights is in the totals above."
    return section("Layers", said, pictures, table("layers", columns, rows, sorted_by=0))


def latency(found: dict) -> str:
    """How long an image takes in each runtime."""
    if not found:
        return ""
    longest = max(times["median"] for times in found["milliseconds"].values()) / 100
    rows = [[cell(name), *(cell(value, ".3f") for value in times.values()),
             bar(times["median"] / longest, 100 - times["median"] / longest)]
            for name, times in found["milliseconds"].items()]  # fmt: skip
    columns = ("runtime", "minimum", "lower quartile", "median", "upper quartile", "median, drawn")
    parts = {"code": "code", "weight": "weights", "arena": "arena"}
    sizes = (f"{found[f'{key}_bytes']:,} bytes of {part}" for key, part in parts.items())
    said = f"CPU, one thread, one image at a time, in turn. C has {charts.listed([*sizes])}."
    return section("Milliseconds per image", said, (), table("latency", columns, rows))


def all_trials(names: dict[Trial, str], chosen: Trial | None) -> str:
    """Every run, smallest first."""
    trials = sorted(names, key=lambda t: (t.parameters is None, t.parameters or 0))
    rows, held = [], any(trial.history.reported for trial in trials)
    for trial in trials:
        best, done = trial.history.best, trial.history.epochs_done
        cells = [cell("★ " * (trial is chosen) + names[trial]), cell(trial.stage)]
        cells += [cell(best.get(name), ".2f") for name in ("val_top1", "zeros")]
        cells += [cell(trial.parameters, ",.0f"), cell(best.get("epoch"), ".0f")]
        cells += [cell(done, ".0f"), cell("done" if done >= trial.planned else "in progress")]
        if held:
            cells.append(cell((trial.history.reported or {}).get("top1"), ".2f"))
        rows.append(cells)
    columns = ("network", "stage", f"{TOP1}, %", "zeros, %", "parameters", "best epoch", "epochs")
    columns += ("state", "top-1 on validation images, %") if held else ("state",)
    said = "Zeros are those of the quantized weights. Column names sort. ★ is the chosen network."
    at = trials.index(chosen) if chosen else None
    whole = table("all trials", columns, rows, sorted_by=4, chosen=at)
    return section("All trials", said, (), whole) if rows else ""


def repeat(subject: Subject, names: dict[Trial, str]) -> str:
    """Each command once, with what it ran on and what it made."""
    made = [(start, t.config["seed"], name) for t, name in names.items() for start in t.starts]
    commands, blocks = {}, []
    for start, seed, name in [*made, (subject.start, subject.seed, "this page")]:
        facts = {**start, "time": "", "seed": f"{seed:.0f}"}
        same = commands.setdefault(json.dumps(facts, sort_keys=True), (facts, [], []))
        same[1].append(start["time"])
        same[2].append(name)
    for facts, times, runs in commands.values():
        command = shlex.join(["python", *map(str, facts.pop("command"))])
        facts["time"] = " to ".join({min(times): 0, max(times): 0})
        facts["made"] = charts.listed([*dict.fromkeys(runs)])
        shown = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in facts.items())
        blocks.append(f"<pre><code>{text(command)}</code></pre><dl>{shown}</dl>")
    return section("To repeat it", "", (), *blocks)


def render(subject: Subject, trials: Sequence[Trial]) -> bytes:
    """The whole page; the same bytes for the same input."""
    names, known = charts.labels(trials), subject.figures.items()
    same = (t for t in trials if known and all(t.history.best.get(k) == v for k, v in known))
    chosen = next(same, None)
    content = [answer(subject), tried(subject, names, chosen), training(names, chosen)]
    content += [latency(subject.latency), layers(subject.score), all_trials(names, chosen)]
    content.append(repeat(subject, names))
    template = TEMPLATE.read_text()
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {"question": text(subject.question), "content": "\n".join(content)}
    return Template(template).substitute(values, script_hash=f"sha256-{digest}").encode()
