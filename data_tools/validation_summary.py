"""The report of ``validate_pairs.py`` as a page of Markdown."""

from typing import Any

from mmalign.tables import markdown_table


def summarise(report: dict[str, Any]) -> str:
    """Put the report in a page of text."""
    leaks, prompts, images = report["leaks"], report["prompts"], report["images"]
    doubled = ", ".join(f"{count:,} {kind}" for kind, count in report["duplicates"].items())
    lines = [
        f"# {report['rows']:,} rows, {report['broken']:,} of them broken",
        "",
        f"- **Duplicates**: {doubled}. {prompts['distinct']:,} distinct prompts with their images, "
        f"at most {prompts['most_pairs']:,} pairs on one.",
    ]
    if leaks["benchmark_images"]:
        lines.append(
            f"- **Leaks**: {leaks['rows_exact']:,} rows show one of {leaks['benchmark_images']:,} benchmark images byte for byte, "
            f"{leaks['rows_perceptual']:,} one that looks the same (at most {leaks['max_distance']} of 256 bits differ)."
        )
    else:
        lines.append("- **Leaks**: not looked for; name folders of benchmark images with --benchmark-images.")
    lines += [
        "",
        markdown_table(
            ["source", "pairs", "words chosen", "words rejected", "chosen longer", "rejected longer", "sign test p"],
            [_bias_row(group, bias) for group, bias in report["length"].items()],
        ),
    ]
    lines += ["", f"{images['distinct']:,} distinct images, at most {images['most_uses']:,} rows on one."]
    if images["distinct"]:
        sizes = ([name.replace("_", " "), *(f"{v:.4g}" for v in images[name].values())] for name in ("width", "height", "aspect_ratio"))
        lines += ["", markdown_table(["", "min", "quartile", "median", "quartile", "max"], sizes)]
        counted = {name: ", ".join(f"{key} {count:,}" for key, count in images[name].items()) for name in ("modes", "formats")}
        lines += ["", f"Modes: {counted['modes']}. Formats: {counted['formats']}."]
    return "\n".join(lines) + "\n"


def _bias_row(group: str, bias: dict[str, Any]) -> list[str]:
    words = f"{bias['mean_words_chosen']:.1f}", f"{bias['mean_words_rejected']:.1f}"
    return [
        group,
        f"{bias['pairs']:,}",
        *words,
        f"{bias['share_chosen_longer']:.1%}",
        f"{bias['share_rejected_longer']:.1%}",
        f"{bias['sign_test_p']:.2g}",
    ]
