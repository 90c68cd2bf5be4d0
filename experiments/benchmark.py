"""The benchmark of training, or with --sampling of sampling, under its short name.

python -m experiments.benchmark --config=configs/digits.py
"""

from experiments import cli
from experiments.benchmarks.training import main

if __name__ == '__main__':
  cli.run(main)
