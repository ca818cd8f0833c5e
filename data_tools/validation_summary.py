"""The report of ``validate_pairs.py`` as a page of Markdown."""

from typing import Any


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
        "| source | pairs | words chosen | words rejected | chosen longer | rejected longer | sign test p |",
        "|---|---|---|---|---|---|---|",
    ]
    for group, bias in report["length"].items():
        lines.append(
            f"| {group} | {bias['pairs']:,} | {bias['mean_words_chosen']:.1f} | {bias['mean_words_rejected']:.1f} | "
            f"{bias['share_chosen_longer']:.1%} | {bias['share_rejected_longer']:.1%} | {bias['sign_test_p']:.2g} |"
        )
    lines += ["", f"{images['distinct']:,} distinct images, at most {images['most_uses']:,} rows on one."]
    if images["distinct"]:
        lines += ["", *_table("", "min", "quartile", "median", "quartile", "max")]
        lines += [
            f"| {name.replace('_', ' ')} | {' | '.join(f'{value:.4g}' for value in images[name].values())} |"
            for name in ("width", "height", "aspect_ratio")
        ]
        counted = {name: ", ".join(f"{key} {count:,}" for key, count in images[name].items()) for name in ("modes", "formats")}
        lines += ["", f"Modes: {counted['modes']}. Formats: {counted['formats']}."]
    return "\n".join(lines) + "\n"


def _table(*titles: str) -> tuple[str, str]:
    return f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"
