"""Scores Parquet with Ray Data, past what one machine can send: one client for each actor.

    python ray_score.py items/ scores/ --url grpc://triton:8001 --actors 8

The rows have `image` (bytes) or `description` or both. The output has them without `image`, and for each
either `label` and `score`, or `error`. Needs `pip install diptych-client 'ray[data]'`.
"""

from __future__ import annotations

import argparse

import pyarrow as pa
import ray

from diptych_client import Answer, Client

ROWS_PER_BATCH = 256


class Classifier:
    """What each actor keeps: one client, so one connection, for all of its batches."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, timeout_s=30)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.to_pylist()
        items = ({"image": row.pop("image", None), "text": row.get("description")} for row in rows)
        outcomes = [self._describe(outcome) for outcome in self._client.classify_many(items, concurrency=16)]
        kept = batch.drop_columns("image") if "image" in batch.column_names else batch
        for name, kind in (("label", pa.string()), ("score", pa.float32()), ("error", pa.string())):
            kept = kept.append_column(name, pa.array([outcome.get(name) for outcome in outcomes], kind))
        return kept

    @staticmethod
    def _describe(outcome: object) -> dict[str, object]:
        if isinstance(outcome, Answer):
            return {"label": outcome.label, "score": outcome.score}
        return {"error": str(outcome)}


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
