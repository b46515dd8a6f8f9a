"""Scores Parquet with Ray Data, for more than one machine can send: one client for each actor.

    python ray_score.py items/ scores/ --url grpc://triton:8001 --actors 8

The rows have `image` (bytes) or `description` or both. The output has them without `image`, and for each
either `label` and `score`, or the `error` in the row. Any other failure, such as a server that is gone, ends
the job: no row is written down as bad for it. Needs `pip install diptych-client 'ray[data]'`.
"""

from __future__ import annotations

import argparse

import pyarrow as pa
import ray

from diptych_client import Client, InvalidInput, Outcome

ROWS_PER_BATCH = 256


class Classifier:
    """What each actor keeps: one client, so one connection, for all of its batches."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, timeout_s=30)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        items = ({"image": row.pop("image", None), "text": row.get("description")} for row in rows)
        outcomes = [self._describe(outcome) for outcome in self._client.classify_many(items)]
        kept = batch.drop_columns("image") if "image" in batch.column_names else batch
        for name, kind in (("label", pa.string()), ("score", pa.float32()), ("error", pa.string())):
            kept = kept.append_column(name, pa.array([outcome.get(name) for outcome in outcomes], kind))
        return kept

    @staticmethod
    def _describe(outcome: Outcome) -> dict[str, object]:
        if outcome.answer is not None:
            return {"label": outcome.answer.label, "score": outcome.answer.score}
        if isinstance(outcome.error, InvalidInput) and outcome.error.is_about_item:
            return {"error": str(outcome.error)}
        assert outcome.error is not None
        raise outcome.error  # not this row's fault: Ray tries the batch again, or ends the job


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", help="Parquet files, or a folder of them")
    parser.add_argument("scores", help="the folder to write")
    parser.add_argument("--url", default="grpc://127.0.0.1:8001")
    parser.add_argument("--actors", type=int, default=2)
    arguments = parser.parse_args()

    items = ray.data.read_parquet(arguments.items)
    # Else Ray may read small files as one block, and one block is one actor's.
    scores = items.repartition(target_num_rows_per_block=ROWS_PER_BATCH).map_batches(
        Classifier,
        fn_constructor_args=(arguments.url,),
        batch_format="pyarrow",
        batch_size=ROWS_PER_BATCH,
        compute=ray.data.ActorPoolStrategy(size=arguments.actors),
        num_cpus=0.5,  # an actor waits for the server most of the time
    )
    scores.write_parquet(arguments.scores)


if __name__ == "__main__":
    main()
