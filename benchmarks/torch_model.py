"""ResNet-18 and -50 on frames, with fusion or without, in PyTorch: what benchmarks compare with.

For train.py and inference.py, written from the equations, to compute what ours computes and no more; see
adafuse_jax/models/resnet.py and adafuse_jax/layers.py for the sources.
"""

import torch
from torch import nn
from torch.nn import functional

TAU = 0.67


class Policy(nn.Module):
    """Pooled x -> one-hot skip, reuse, keep per channel of y, by Gumbel noise, straight through."""

    def __init__(self, fc0: nn.Linear, fc1: nn.Linear):
        super().__init__()
        self.fc0, self.fc1 = fc0, fc1
        self.bn = nn.BatchNorm1d(fc0.out_features)

    def forward(self, x, frames):
        v = x.float().mean((2, 3)).view(-1, frames, x.shape[1])
        before = functional.pad(v, (0, 0, 1, 0))[:, :-1]
        hidden = functional.relu(self.bn(self.fc0(torch.cat([before, v], -1)).flatten(0, 1)))
        logits = self.fc1(hidden).float().view(len(x), -1, 3)
        log_p = logits.softmax(-1).clamp_min(1e-8).log()
        soft = ((log_p - torch.empty_like(log_p).exponential_().log()) / TAU).softmax(-1)
        hard = functional.one_hot(soft.argmax(-1), 3).to(soft.dtype)
        return hard + (soft - soft.detach())


class Block(nn.Module):
    """A residual block; its fusion, if any, after the first convolution."""

    def __init__(self, i_in, width, stride, bottleneck):
        super().__init__()
        self.width, self.features = width, width * 4 if bottleneck else width
        kernels = ((1, 1), (3, stride), (1, 1)) if bottleneck else ((3, stride), (3, 1))
        sizes = (i_in, width, width, self.features) if bottleneck else (i_in, width, width)
        self.convs = nn.ModuleList(
            nn.Conv2d(sizes[i], sizes[i + 1], k, s, k // 2, bias=False) for i, (k, s) in enumerate(kernels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in sizes[1:])
        self.shortcut = None
        if stride != 1 or i_in != self.features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(i_in, self.features, 1, stride, bias=False), nn.BatchNorm2d(self.features)
            )
        self.policy = None

    def forward(self, x, frames):
        """The output, and the GMACs per frame that the policy saves."""
        out, saved = x, 0.0
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if i + 1 < len(self.convs):
                out = functional.relu(out, inplace=True)
            if i == 0 and self.policy is not None:
                out, saved = self.fuse(x, out, frames)
        return functional.relu(out + (x if self.shortcut is None else self.shortcut(x)), inplace=True), saved

    def fuse(self, x, y, frames):
        policy = self.policy(x, frames)
        skip, reuse, keep = policy.view(-1, frames, self.width, 3).unbind(-1)
        later = functional.pad(reuse, (0, 0, 0, 1))[:, 1:]
        sides = y.shape[2] * y.shape[3], (y.shape[2] // self.convs[1].stride[0]) ** 2
        macs = [c.weight.numel() * s / 1e9 for c, s in zip(self.convs, sides, strict=False)]
        saved = ((1 - keep) * (1 - later)).mean() * macs[0] + skip.mean() * macs[1]
        # As (clips, frames, ...), channels last as the convolutions leave it.
        clips = y.view(-1, frames, *y.shape[1:])
        before = torch.cat([torch.zeros_like(clips[:, :1]), clips[:, :-1]], 1)
        keep, reuse = keep.to(y.dtype)[..., None, None], reuse.to(y.dtype)[..., None, None]
        return (keep * clips + reuse * before).flatten(0, 1), saved


class ResNet(nn.Module):
    """Clips (B, T, 3, H, W) of bytes -> logits, and the saved GMACs per frame."""

    def __init__(self, name: str, classes: int):
        super().__init__()
        bottleneck = name.endswith("r50")
        self.conv, self.norm = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        blocks, i_in, linears = [], 64, {}
        for stage, count in enumerate((3, 4, 6, 3) if bottleneck else (2, 2, 2, 2)):
            width = 64 * 2**stage
            for i in range(count):
                block = Block(i_in, width, 2 if i == 0 and stage else 1, bottleneck)
                if name.startswith("adafuse"):
                    hidden = 196608 // width if bottleneck else 512
                    if (i_in, width) not in linears:
                        linears[i_in, width] = nn.Linear(2 * i_in, hidden), nn.Linear(hidden, 3 * width)
                    block.policy = Policy(*linears[i_in, width])
                blocks.append(block)
                i_in = block.features
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(i_in, classes)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, clips):
        frames = clips.shape[1]
        x = (clips.flatten(0, 1) / 255.0 - self.mean) / self.std
        features, saved = self.features(x.contiguous(memory_format=torch.channels_last), frames)
        logits = self.fc(functional.dropout(features, 0.5))
        return logits.view(-1, frames, logits.shape[-1]).mean(1), saved

    def features(self, x, frames):
        """Of normalised frames (B * T, 3, H, W), and the saved GMACs per frame."""
        x = functional.relu(self.norm(self.conv(x)), inplace=True)
        x, saved = functional.max_pool2d(x, 3, 2, 1), 0.0
        for block in self.blocks:
            x, less = block(x, frames)
            saved = saved + less
        return x.mean((2, 3)), saved


class Dense(nn.Module):
    """Normalised frames (B * T, 3, H, W) -> logits (B, classes), in evaluation and without policies."""

    def __init__(self, model: ResNet, frames: int):
        super().__init__()
        self.model, self.frames = model, frames

    def forward(self, x):
        features, _ = self.model.features(x, self.frames)
        logits = self.model.fc(features)
        return logits.view(-1, self.frames, logits.shape[-1]).mean(1)


def make_step(name: str, classes: int, batch: int, image_size: int, device: str, threads: int):
    """The model's parameters and its step () -> loss, on random clips of 8 frames.

    On a GPU channels last, autocast to bfloat16 and torch.compile; on the CPU float32, channels last.
    """
    torch.set_num_threads(threads)
    model = ResNet(name, classes).to(device).to(memory_format=torch.channels_last).train()
    parameters = sum(p.numel() for p in model.parameters())
    run = torch.compile(model) if device == "cuda" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    clips = torch.randint(0, 256, (batch, 8, 3, image_size, image_size), dtype=torch.uint8, device=device)
    labels = torch.arange(batch, device=device) % classes

    def step():
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits, saved = run(clips)
            loss = functional.cross_entropy(logits.float(), labels) - 0.1 * saved
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 20.0)
        optimizer.step()
        return loss.item()  # waits

    return parameters, step


def make_inference(name: str, classes: int, frames: int, threads: int):
    """{way: a model of normalised clips}, on the CPU in float32, channels last.

    "eager" with BatchNorm folded by torch.fx, "compiled" by torch.compile with constants folded, BatchNorm's
    too.
    """
    from torch._inductor import config
    from torch.fx.experimental import optimization

    torch.set_num_threads(threads)
    config.freezing = True
    model = Dense(ResNet(name, classes), frames).eval()
    eager = optimization.fuse(model).to(memory_format=torch.channels_last)
    return {"eager": eager, "compiled": torch.compile(model.to(memory_format=torch.channels_last))}


def peak_device_mb() -> float:
    """Of this process on the GPU."""
    return torch.cuda.max_memory_allocated() / 1e6
