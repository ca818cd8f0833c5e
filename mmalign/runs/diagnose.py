"""``mmalign diagnose``: what preference training did to a model, and what its pairs are like."""

from mmalign.errors import UserError
from mmalign.options.diagnose import DiagnoseOptions
from mmalign.runs.diagnosis import diagnose


def run(options: DiagnoseOptions) -> None:
    """Diagnose, write both files, and print the counters.

    Raises:
        ValueError: If a number makes no sense, and as ``diagnose``.
    """
    for name in ("max_pairs", "max_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}; expected at least 1")
    if options.credited < 0 or not options.beta > 0:
        raise UserError(f"credited is {options.credited} and beta {options.beta}; expected a number from 0 and a positive one")

    diagnosis, page = diagnose(options)
    for name, moved in diagnosis["movement"].items():
        print(
            f"{name.replace('_', '-')} ({moved['num_pairs']:,}): h of chosen {moved['chosen']:+.3f}, of rejected {moved['rejected']:+.3f}; "
            f"below the start: {moved['degraded']:.1%} of chosen, {moved['rejected_below']:.1%} of rejected; dropped {moved['dropped']:.1%}"
        )
    for name, probe in diagnosis["separability"].items():
        print(f"chosen told from rejected by {name}: {probe['accuracy']:.1%} [{probe['low']:.1%}, {probe['high']:.1%}]")
    print(f"saved in {page}")
