r"""Collect a judge's rubrics for pairs whose better response is known, to train a rubric judge on (UnifiedReward-Flex, arXiv:2602.02380).

    python data_tools/collect_traces.py pairs/pairs --endpoint http://127.0.0.1:8000/v1 --model STRONG --out traces
    mmalign train sft --model policy --data traces/chats --out judge
    python data_tools/collect_traces.py more/pairs --model judge --out own
    mmalign train preference --model judge --data own/pairs --out judge-dpo
    python data_tools/collect_traces.py target/pairs --model judge-dpo --samples 1 --temperature 0.1 --out scored

Each pair is shown in both orders, and the judge draws --samples replies to each. Writes OUT/chats (a right reply to each order, for train
sft), OUT/pairs (a right reply against a wrong one, with their margins as score_chosen and score_rejected), OUT/scored.parquet (the rows
with gap_rubric, the judge's mean margin for the chosen response, and scores made of it) and OUT/traces.json (how often the judge was
right, by source). --teacher world writes the replies itself, from what the embedded world knows of its pairs.

Work is done in chunks: give the same command again after a stop, and the result has the same bytes.

Cost: 2 x --samples replies of up to --max-new-tokens per pair.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from data_tools.program import run_program
from data_tools.trace_options import TraceOptions


def run(options: TraceOptions) -> None:
    """Collect the replies, then write what they teach, and print how the judge did.

    Raises:
        ValueError: If too many pairs are broken, or OUT holds another run.
    """
    from data_tools.chunks import run_chunks
    from data_tools.trace_collection import SCORED, TraceCollector, tell, write_traces
    from mmalign.data.datasets import hash_data_files, load_rows, refuse_overwriting
    from mmalign.evaluation.judges.rubric import PROMPT

    wording = PROMPT if options.prompt is None else options.prompt.read_text(encoding="utf-8")
    refuse_overwriting(options.data, options.out / SCORED)
    dataset = load_rows(options.data)
    collector = TraceCollector(options, dataset, wording=wording)
    settings = {"builder": "traces", "data": hash_data_files(options.data), "prompt": wording, **_settings(options)}
    chunks = run_chunks(len(dataset), collector, out=options.out, fingerprint=settings, size=options.batch_size, label="traces")
    record = write_traces(dataset, chunks, options)
    (options.out / "traces.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(tell(record))


def _settings(options: TraceOptions) -> dict[str, Any]:
    """All that decides the replies, beside the pairs and the wording."""
    from mmalign.models.fingerprint import fingerprint_checkpoint

    names = ("model", "teacher", "samples", "search", "temperature", "top_p", "top_k", "max_new_tokens", "seed", "endpoint", "image_root")
    settings = {name: getattr(options, name) for name in names}
    if options.endpoint is not None:
        return settings | {"endpoint_decoding": options.endpoint_decoding}
    return settings | ({"weights": fingerprint_checkpoint(options.model, dtype=options.dtype)} if options.model else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit status."""
    return run_program(run, TraceOptions, argv, file=__file__, doc=__doc__)


if __name__ == "__main__":
    sys.exit(main())
