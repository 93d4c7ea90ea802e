"""Weights that count as trained: a file, and the record that the trainer would have left beside it."""

import hashlib

from danet.core.files import sha256
from danet.data.prepared import PreparedDataset
from danet.results import schema, store
from danet.results.identity import TrainingIdentity, trained_on

TRAINING = schema.Training(
    iterations=10,
    final_loss=0.5,
    images_per_second=1.0,
    hours=0.01,
    peak_memory_gib=1.0,
    provenance=schema.Provenance(),
)


def keep_seed(workspace, row, seed, save, *, data=None, best=None):
    """Saves weights as those of a finished seed, trained on the prepared training split (or ``data``).

    ``best`` are the bytes of the epoch that was best on val, if it was kept; its iteration is 100 and the seed.
    """
    if data is None:
        data = trained_on(row, lambda split: PreparedDataset(workspace.prepared(row.dataset), split).manifest_hash)
    path = store.weights_path(workspace, row, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path)
    kept = None
    if best is not None:
        store.best_path(workspace, row, seed).write_bytes(best)
        kept = schema.BestEpoch(iteration=100 + seed, score=50.0, weights_sha256=hashlib.sha256(best).hexdigest())
    record = schema.SeedRecord(
        row=row.name,
        identity=TrainingIdentity.of(row, seed, data=data, initial_weights=None),
        weights_sha256=sha256(path),
        best=kept,
        run=TRAINING,
        curve=[],
    )
    schema.save(store.record_path(workspace, row, seed), record)
    return path
