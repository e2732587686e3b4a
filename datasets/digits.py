"""scikit-learn's bundled handwritten digits."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset


class Digits(TensorDataset):
    """1,797 grey images of 8x8 in ten classes (UCI, Alpaydin and Kaynak 1998), as scikit-learn ships them.

    A sample is (image [1, 8, 8] float32 in [0, 1], class int64). The file is read from the installed package without
    importing it: that import takes 0.8 s.
    """

    def __init__(self) -> None:
        spec = importlib.util.find_spec("sklearn")
        if spec is None or spec.origin is None:
            message = "the digits are part of scikit-learn: pip install scikit-learn"
            raise ModuleNotFoundError(message)
        file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))
        super().__init__(table[:, :-1].view(-1, 1, 8, 8) / 16, table[:, -1].long())
