"""The least that a Hydra program can do with a config folder: `python bare_hydra.py FOLDER --cfg job`."""

import sys

import hydra
from omegaconf import DictConfig


@hydra.main(version_base=None, config_path=sys.argv.pop(1), config_name="config")
def main(config: DictConfig) -> None:
    """Nothing: `--cfg job` prints the config and ends before; a job of a multirun has been composed twice by then."""


if __name__ == "__main__":
    main()
