"""What the work took: the records beside the outs, summed by stage. No out and no page holds a wall-clock figure."""

from pd_pipeline import records
from pd_pipeline.graph import Graph
from pd_pipeline.stages import FAMILY

HEAD = ("family", "stage", "recorded", "seconds", "device", "precision")
RIGHT = ("recorded", "seconds")
NONE = "-"


def table(graph: Graph) -> list[tuple[str, ...]]:
    """Cells of equal width, one row per family and stage below a row of titles.

    A piece without a record was made elsewhere (checked out) or not yet, as `recorded` shows: 3 of 15.
    """
    rows = [HEAD]
    for name, stage in graph.stages.items():
        for family in graph.params.run.families if FAMILY in stage.axes else (None,):
            found = [records.find(graph.root, name, key) for key in graph.keys(name) if key.family == family]
            known = [record for record in found if record is not None]
            seconds = f"{sum(record.seconds for record in known):,.1f}" if known else NONE
            device, precision = (
                ", ".join(sorted({value for record in known if (value := getattr(record, field))})) or NONE
                for field in ("device", "precision")
            )
            rows.append((family or NONE, name, f"{len(known)} of {len(found)}", seconds, device, precision))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return [
        tuple(
            cell.rjust(width) if title in RIGHT else cell.ljust(width)
            for cell, width, title in zip(row, widths, HEAD, strict=True)
        )
        for row in rows
    ]
