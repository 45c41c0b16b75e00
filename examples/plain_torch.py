"""The stream in a training loop of plain torch: a masked autoencoder or, with --views 1, a classifier.

    python examples/plain_torch.py photos-shards
    torchrun --nproc-per-node 4 examples/plain_torch.py photos-shards

Whatever ends it, the same command goes on from the last checkpoint, with the very next image, on as many processes
as before or on others. B images, U mask units of an image, V of them visible, P pixels of a unit, C channels.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, unfold
from torch.nn.parallel import DistributedDataParallel

from coma.pipeline import Batch, Stream

SIDE = 32  # pixels of a mask unit
PIXELS, CHANNELS = 3 * SIDE**2, 128


def transformer(depth: int) -> nn.TransformerEncoder:
    """Return transformer blocks over [B, any number of tokens, C]."""
    block = nn.TransformerEncoderLayer(CHANNELS, 4, dropout=0.0, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(block, depth, enable_nested_tensor=False)


class Encoder(nn.Module):
    """Encoder of chosen mask units of each image, one token for each."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Linear(PIXELS, CHANNELS), transformer(depth=4)
        self.position = nn.Parameter(torch.randn(units, CHANNELS) * 0.02)

    def forward(self, pixels: Tensor, visible: Tensor) -> Tensor:
        """Encode pixels [B, U, 3P], in raster order, of the units `visible` [B, V] as [B, V, C]."""
        seen = pixels.take_along_dim(visible.unsqueeze(2), dim=1)
        tokens: Tensor = self.blocks(self.embed(seen) + self.position[visible])
        return tokens


class Autoencoder(nn.Module):
    """Masked autoencoder: sees one view of an image at a time and predicts the pixels that it hides."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(units), transformer(depth=1)
        self.blank, self.paint = nn.Parameter(torch.zeros(units, CHANNELS)), nn.Linear(CHANNELS, PIXELS)

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean squared error of hidden pixels, over all views."""
        pixels = unfold(batch.images, SIDE, stride=SIDE).mT  # [B, U, 3P]
        losses = []
        for visible in torch.split(batch.units, list(batch.view_sizes), dim=1):  # [B, V]
            seen = self.encoder(pixels, visible)
            blank = self.blank.expand(len(pixels), -1, -1)  # [B, U, C]
            canvas = blank.scatter(1, visible.unsqueeze(2).expand_as(seen), seen)
            error = (self.paint(self.decoder(canvas)) - pixels).square().mean(dim=2)  # [B, U]
            losses.append(error.scatter(1, visible, 0.0).sum() / (error.numel() - visible.numel()))
        return torch.stack(losses).mean()


class Classifier(nn.Module):
    """Classifier of whole images: the only view has all units."""

    def __init__(self, units: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = Encoder(units), nn.Linear(CHANNELS, classes)

    def forward(self, batch: Batch) -> Tensor:
        """Return the cross-entropy of the labels."""
        assert batch.labels is not None, "these images have no classes to learn: give --views 2"
        tokens = self.encoder(unfold(batch.images, SIDE, stride=SIDE).mT, batch.units)
        return cross_entropy(self.head(tokens.mean(dim=1)), batch.labels)


def main() -> None:
    """Train, from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser(description="A training loop of plain torch around the stream.")
    parser.add_argument("data", help="what `coma shard` made")
    parser.add_argument("--out", type=Path, default=Path("plain-torch"), help="for checkpoint and ledger")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--views", type=int, default=2, help="1: no masks, learn the classes")
    parser.add_argument("--save-every", type=int, default=100, help="steps")
    args = parser.parse_args()

    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    on_gpu, device = torch.cuda.is_available(), torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if world_size > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    torch.manual_seed(0)  # the same weights on all ranks
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"

    options = {"views": args.views, "unit_size": SIDE, "ledger": args.out / "ledger.jsonl", "device": device}
    with Stream(args.data, batch_size=args.batch_size, rank=rank, world_size=world_size, **options) as stream:
        units, classes = sum(stream.view_sizes), len(stream.manifest.class_names or ())
        network = (Classifier(units, classes) if args.views == 1 else Autoencoder(units)).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
        step = 0
        if checkpoint.exists():
            saved = torch.load(checkpoint, map_location=device, weights_only=True)
            network.load_state_dict(saved["network"])
            optimizer.load_state_dict(saved["optimizer"])
            stream.load_state_dict(saved["stream"])
            step = saved["step"]
        model = DistributedDataParallel(network) if world_size > 1 else network
        while step < args.steps:
            loss = model(next(stream))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if rank == 0:
                print(f"step {step}  samples {stream.consumed}  loss {loss:.6f}", flush=True)
            if rank == 0 and (step % args.save_every == 0 or step == args.steps):
                state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
                temporary = args.out / "checkpoint.tmp"
                torch.save({**state, "stream": stream.state_dict(), "step": step}, temporary)
                temporary.replace(checkpoint)  # whole, whenever the process is killed
    if world_size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
