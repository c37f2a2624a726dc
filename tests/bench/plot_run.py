"""Draws the curve of a run, and prints its held-out losses by language as a Markdown table.

python tests/bench/plot_run.py RUN OUT.png
"""

import argparse
import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")


def draw(rows: list[dict], out: Path) -> None:
    """Training and held-out loss over tokens, beside the unigram entropy of the held-out tokens."""
    training = [(row["tokens"] / 1e6, row["loss"]) for row in rows if "loss" in row]
    scored = [row for row in rows if "eval_loss" in row]
    figure, axes = plt.subplots(figsize=(8, 4.2), dpi=120)
    axes.plot(*zip(*training, strict=True), color="#9db4c8", linewidth=1, label="training")
    axes.plot(
        [row["tokens"] / 1e6 for row in scored],
        [row["eval_loss"] for row in scored],
        color="#1f4e79",
        marker="o",
        markersize=4,
        label="held out",
    )
    entropy = scored[-1]["eval_unigram_entropy"]
    axes.axhline(entropy, color="#b5532a", linestyle="--", linewidth=1)
    axes.annotate(
        f"unigram entropy of the held-out tokens: {entropy:.2f}",
        (axes.get_xlim()[1], entropy),
        xytext=(-6, 5),
        textcoords="offset points",
        horizontalalignment="right",
        color="#b5532a",
        fontsize=9,
    )
    axes.set_xlabel("tokens, millions")
    axes.set_ylabel("loss, nats per masked token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(out)


def table(final: dict, columns: int = 3) -> str:
    """Language, held-out loss, unigram entropy of its held-out tokens; `columns` side by side."""
    losses, entropies = final["eval_loss_by_language"], final["eval_unigram_entropy_by_language"]
    cells = [f"{name} | {losses[name]:.2f} | {entropies[name]:.2f}" for name in sorted(losses)]
    rows = -(-len(cells) // columns)
    cells += ["| | "] * (rows * columns - len(cells))
    head = "| " + " | ".join(["language | loss | entropy"] * columns) + " |"
    lines = [head, "|" + "---|" * 3 * columns]
    lines += ["| " + " | ".join(cells[row::rows]) + " |" for row in range(rows)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    rows = [json.loads(line) for line in (given.run / "metrics.jsonl").read_text().splitlines()]
    draw(rows, given.out)
    print(table(json.loads((given.run / "evaluation.json").read_text())))


if __name__ == "__main__":
    main()
