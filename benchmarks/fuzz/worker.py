"""One target under atheris, in the environment of ``requirements.txt``: ``worker TARGET RUNS FOLDER [libFuzzer...]``.

Failures that are Python exceptions are saved in ``FOLDER/findings`` and the run goes on; crashes of the process, hangs
and excessive memory end it, with libFuzzer's artifact there. ``FOLDER/stats.json`` has the counts.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import atheris

SAVE_EVERY = 2000
INSTRUMENTED = {"zip": ["zipfile"], "prepared": ["zipfile", "csv"], "tar": ["tarfile"], "yaml": ["yaml"]}
"""By target, what is instrumented besides ``danet``: the parsers that are Python and fast enough for it."""


def peak_mb() -> int:
    """The largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:  # noqa: PLR0915 - one linear setup around libFuzzer's callback
    """Does not return: libFuzzer ends the process."""
    name, runs, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]).resolve()
    # torch and everything heavy first: only what is imported under the hook is instrumented
    import safetensors.torch  # noqa: F401 - see above
    import scipy.io  # noqa: F401 - see above
    import torch

    modules = INSTRUMENTED.get(name, [])
    for module in [*modules, *(key for key in sys.modules if key.partition(".")[0] in modules)]:
        sys.modules.pop(module, None)
    with atheris.instrument_imports(include=["danet", *modules]):
        for module in modules:
            importlib.import_module(module)
        from benchmarks.fuzz import targets
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    target = targets.TARGETS[name]
    findings = folder / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    stats = {"cases": 0, "refused": 0, "findings": 0, "start_mb": peak_mb()}
    seen: set[str] = set()
    saved = time.monotonic()
    guard = targets.Guard()
    shared = Path("/dev/shm")  # noqa: S108 - memory, not a file of a fixed name
    place = Path(tempfile.mkdtemp(prefix="danet-fuzz-", dir=shared if shared.is_dir() else None))
    case = target.prepare(place)

    def save() -> None:
        (folder / "stats.json").write_text(json.dumps({**stats, "peak_mb": peak_mb()}))

    def one(data: bytes) -> None:
        nonlocal saved
        stats["cases"] += 1
        try:
            stats["refused"] += targets.run_case(case, data, guard, place)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/danet/" in frame.filename]
            where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
            key = f"{type(error).__name__} {where}"
            stats["findings"] += 1
            if key not in seen:
                seen.add(key)
                digest = hashlib.sha256(data).hexdigest()[:12]
                (findings / f"{digest}.bin").write_bytes(data)
                text = "".join(traceback.format_exception(error))
                (findings / f"{digest}.txt").write_text(f"{key}\n{text}", encoding="utf-8", errors="backslashreplace")
        if stats["cases"] % SAVE_EVERY == 0 or stats["cases"] >= runs or time.monotonic() > saved + 1:
            save()
            saved = time.monotonic()

    corpus, dictionary = folder / "corpus", folder / "dictionary"
    corpus.mkdir(exist_ok=True)
    for seed in target.seeds():
        (corpus / hashlib.sha256(seed).hexdigest()[:12]).write_bytes(seed)
        one(seed)
    dictionary.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in target.tokens), encoding="ascii"
    )
    options = [
        f"-runs={runs}",
        *([f"-dict={dictionary}"] if target.tokens else []),
        f"-max_len={target.max_length}",
        f"-artifact_prefix={findings}/",
        "-timeout=20",
        f"-rss_limit_mb={peak_mb() + 1024}",
        "-malloc_limit_mb=100000",  # virtual sizes do not hurt, resident ones do
        "-verbosity=0",
        "-print_final_stats=0",
    ]
    os.chdir(place)
    atheris.Setup([sys.argv[0], *options, *sys.argv[4:], str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
