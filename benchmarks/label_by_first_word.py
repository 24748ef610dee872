"""A captioned data set with splits and labels, for benchmarks that compare samples in a classifier's features.

    python benchmarks/label_by_first_word.py --dataset_name DATA --output_dir FOLDER

Captions that begin with the same word, punctuation aside, make a class where there are 40 of them; the others are one
class more. A twentieth of the images becomes the split `test`. FOLDER is then a data set for --dataset_name.
"""

import argparse
from collections import Counter
from pathlib import Path

import datasets

FEWEST, TEST_SHARE, OTHER = 40, 0.05, "other"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--caption_column", default="text")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    data = datasets.load_dataset(args.dataset_name, split="train")
    words = [caption.split()[0].lower().strip(":,") for caption in data[args.caption_column][:]]
    counts = Counter(words)
    names = [*sorted(word for word, count in counts.items() if count >= FEWEST), OTHER]
    data = data.add_column("label", [names.index(word if counts[word] >= FEWEST else OTHER) for word in words])
    splits = data.cast_column("label", datasets.ClassLabel(names=names)).train_test_split(TEST_SHARE, seed=0)
    args.output_dir.mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(args.output_dir / f"{name}-00000-of-00001.parquet")
        print(f"{name}: {len(split)} images; {dict(Counter(names[label] for label in split['label'][:]))}")


if __name__ == "__main__":
    main()
