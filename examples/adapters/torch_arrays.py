"""What the PyTorch adapters here share: arrays as tensors, gradients by autograd, `--dtype`. Needs adapter.py and torch."""

import argparse

import torch

import adapter

TEXTS = ("response", "answer")


def serve(name, version, dtypes=("f32", "f64")):
    parser = argparse.ArgumentParser(description=f"{name} as an adapter for grpo-oracle verify")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="the format of inputs (and of arithmetic)")
    dtype = parser.parse_args().dtype
    torch.set_num_threads(1)

    def read(name, shape, data):
        """Whole numbers (masks, labels, tokens) have no point in JSON; they become long tensors, the others leaves."""
        if name in TEXTS:
            return data if shape else data[0]
        if data and all(isinstance(entry, int) for entry in data):
            return torch.tensor(data).reshape(shape)
        numbers = torch.tensor([float(str(entry).replace("Infinity", "inf")) for entry in data], dtype=torch.float64)
        if dtype != "f64":  # what is computed from numbers in bf16 is computed in single precision
            numbers = numbers.to(torch.bfloat16 if dtype == "bf16" else torch.float32).float()
        return numbers.reshape(shape).requires_grad_()

    adapter.serve(name, version, dtype, compute=by_autograd, read=read, write=write)


def write(value):
    if not isinstance(value, torch.Tensor):
        return adapter.plain(value)
    entries = value.detach().reshape(-1).tolist()
    numbers = [int(entry) if isinstance(entry, bool) else entry for entry in entries]
    return {"shape": list(value.shape), "data": adapter.plain(numbers)}


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
