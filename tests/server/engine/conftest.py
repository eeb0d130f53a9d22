"""Torch on one thread: tiny models gain nothing from more, and the machine runs other things."""

import torch

torch.set_num_threads(1)
