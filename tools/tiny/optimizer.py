"""Muon for the matrices inside blocks (Jordan et al. 2024, update scale of Liu et al. 2025), AdamW for the rest."""

from collections import defaultdict

import torch


def orthogonalise(g):
    """Nearest semi-orthogonal matrices of a stack [N, rows <= columns], by five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.to(torch.bfloat16) if g.is_cuda else g
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return x.to(g.dtype)


class Muon:
    """Matrices are grouped by shape; fused ones, such as qkv, count as several."""

    def __init__(self, named, momentum=0.95, decay=0.05):
        self.momentum, self.decay = momentum, decay
        self.groups = defaultdict(list)
        for name, p in named:
            pieces = getattr(p, "pieces", 3 if "qkv" in name else 1)
            for piece in range(pieces):
                rows = p.shape[0] // pieces
                shape = (rows, p.shape[1])
                self.groups[(min(shape), max(shape))].append((p, piece * rows, rows))
        self.state = {key: torch.zeros((len(v), *key), device=v[0][0].device) for key, v in self.groups.items()}

    @torch.no_grad()
    def step(self, lr):
        """lr: a tensor of one element."""
        for (short, long), members in self.groups.items():
            views = [p.grad[at : at + rows] for p, at, rows in members]
            g = torch.stack([v if v.shape[0] == short else v.mT for v in views])
            buffer = self.state[(short, long)]
            buffer.lerp_(g, 1 - self.momentum)
            update = orthogonalise(g.lerp(buffer, self.momentum)) * (lr * (0.2 * long**0.5))
            parts = [u if v.shape[0] == short else u.mT for u, v in zip(update.unbind(0), views)]
            weights = [p.data[at : at + rows] for p, at, rows in members]
            torch._foreach_mul_(weights, 1 - lr * self.decay)
            torch._foreach_sub_(weights, parts)


def build(model):
    """The two optimisers of a model: (Muon, AdamW); AdamW's learning rate is a tensor."""
    apart = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight")
    matrices = [(n, p) for n, p in model.named_parameters() if p.ndim == 2 and not n.endswith(apart)]
    names = {n for n, _ in matrices}
    rest = [p for n, p in model.named_parameters() if n not in names]
    device = next(model.parameters()).device
    cuda = device.type == "cuda"
    return Muon(matrices), torch.optim.AdamW(
        rest,
        lr=torch.zeros((), device=device),
        betas=(0.9, 0.98),
        weight_decay=0.0,
        fused=True if cuda else None,
        capturable=cuda,
    )
