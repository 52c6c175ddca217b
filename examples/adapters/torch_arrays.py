"""What the PyTorch adapters here share: arrays as tensors, gradients by autograd, `--dtype`. Needs adapter.py and torch."""

import argparse
import os

import torch

import adapter

TEXTS = ("response", "answer")


def serve(name, version, dtypes=("f32", "f64")):
    parser = argparse.ArgumentParser(description=f"{name} as an adapter for grpo-oracle verify")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="the format of inputs (and of arithmetic)")
    parser.add_argument("--finite-padding", action="store_true",
                        help="put 0 in the place of NaN and infinities: fixtures have them in masked slots")
    arguments = parser.parse_args()
    dtype = arguments.dtype
    torch.set_num_threads(1)

    def read(name, shape, data):
        """Whole numbers (masks, labels, tokens) have no point in JSON; they become long tensors, the others leaves."""
        if name in TEXTS:
            return data if shape else data[0]
        if data and all(isinstance(entry, int) for entry in data):
            return torch.tensor(data).reshape(shape)
        numbers = torch.tensor([float(str(entry).replace("Infinity", "inf")) for entry in data], dtype=torch.float64)
        if arguments.finite_padding and not name.startswith("logits"):
            numbers = numbers.nan_to_num(0.0, 0.0, 0.0)
        if dtype != "f64":  # what is computed from numbers in bf16 is computed in single precision
            numbers = numbers.to(torch.bfloat16 if dtype == "bf16" else torch.float32).float()
        return numbers.reshape(shape).requires_grad_()

    adapter.serve(name, version, dtype, compute=by_autograd, read=read, write=write)
    os._exit(0)  # at once: taking PyTorch down may take longer than a judge waits


def bound(name, asked, own, numbers):
    """A bound that the implementation always has (None: it has none) stands for the one that is asked for where neither
    would change any of these numbers."""
    bounds = [limit for limit in (asked, own) if limit is not None]
    if asked != own and numbers.numel() and numbers.detach().abs().max() > min(bounds):
        raise adapter.Unsupported(f"{name} is always {own} here, which on this input is not the same as {asked}")


def write(value):
    if not isinstance(value, torch.Tensor):
        return adapter.plain(value)
    return {"shape": list(value.shape), "data": adapter.plain(value.detach().reshape(-1))}


def by_autograd(name, function, inputs, options, want):
    """Outputs, and the gradients of the sum of the first; an input without a way to it has zeros."""
    answer = dict(function(**inputs, **options))
    wanted = [key for key in want if key.startswith("grad:") and key[5:] in inputs]
    total = next(iter(answer.values()))
    if not wanted or not isinstance(total, torch.Tensor):
        return answer
    leaves = [inputs[key[5:]] for key in wanted]
    gradients = [None] * len(leaves)
    if total.requires_grad:
        gradients = torch.autograd.grad(total.sum(), leaves, allow_unused=True)
    for key, leaf, slope in zip(wanted, leaves, gradients):
        answer[key] = torch.zeros_like(leaf) if slope is None else slope
    return answer
