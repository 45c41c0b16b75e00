"""Order of tokens: mask units in raster order, patches inside a unit in Morton (Z) order.

In this order every window of 4, 16 or 64 tokens and every 2x2 merge is a run of consecutive tokens, so a
reshape.

Legend: B images, U mask units, V of them chosen, T patches of a unit, P values of a patch (p·p·3), p patch pixels, C
channels.
"""

import torch
from torch import Tensor, nn

from coma.errors import UsageError

Grid = tuple[int, int]
"""Mask units down and across an image."""


def unit_grid(height: int, width: int, unit_size: int, way_out: str = "") -> Grid:
    """Return how many mask units an image of this many pixels has; UsageError if they do not fill it."""
    if min(height, width) < 1 or height % unit_size or width % unit_size:
        raise UsageError(
            f"image size {height}x{width} is not a multiple of the {unit_size}-pixel mask unit:"
            f" change the image size{', ' if way_out else ''}{way_out}"
        )
    return height // unit_size, width // unit_size


def to_units(images: Tensor, unit_size: int, patch_size: int) -> Tensor:
    """Cut images into units and patches: [B, 3, H, W] to [B, U, T, P], P ordered (row, column, channel).

    `unit_size` is `patch_size` times a power of two; H and W are multiples of it.
    """
    b, c, height, width = images.shape
    grid, levels = (height // unit_size, width // unit_size), _levels(unit_size // patch_size)
    split = (b, c, grid[0], *[2] * levels, patch_size, grid[1], *[2] * levels, patch_size)
    x = images.reshape(split).permute(0, *_morton_dims(2, levels), 1)
    return x.reshape(b, grid[0] * grid[1], 4**levels, patch_size * patch_size * c)


def from_units(patches: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """Put units and patches back together: [B, U, T, P] to [B, P/p², H, W], the inverse of `to_units`."""
    b, _, tokens, values = patches.shape
    levels, c = _levels(round(int(tokens) ** 0.5)), values // patch_size**2
    side = patch_size * 2**levels
    split = (b, *grid, *[2, 2] * levels, patch_size, patch_size, c)
    order = (0, *_morton_dims(2, levels), 1)  # of to_units: position i holds the source dimension order[i]
    inverse = [order.index(i) for i in range(len(order))]
    return patches.reshape(split).permute(inverse).reshape(b, c, grid[0] * side, grid[1] * side)


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """Tokens of all units in raster order as a picture: [B, U·T, C] to [B, h, w, C]."""
    b, n, c = tokens.shape
    units = grid[0] * grid[1]
    return from_units(tokens.reshape(b, units, n // units, c), grid, 1).permute(0, 2, 3, 1)


def take_units(x: Tensor, units: Tensor | None) -> Tensor:
    """Choose `units` [B, V] of x [B, U, T, P], in their order (None: all, as they are): [B, V, T, P]."""
    if units is None:
        return x
    b, u = x.shape[:2]
    rows = units + u * torch.arange(b, device=units.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).reshape(*units.shape, *x.shape[2:])


def unit_windows(grid: Grid, side: int, device: torch.device | None = None) -> tuple[Tensor, list[int]]:
    """Cut a grid into windows of `side` x `side` units, smaller ones at its right and lower edge.

    Returns:
        [U] int64, the units of one window after another, windows of one size side by side, and the windows' sizes.
    """
    units = torch.arange(grid[0] * grid[1], device=device).reshape(grid)
    windows = [
        units[top : top + side, left : left + side].flatten()
        for top in range(0, grid[0], side)
        for left in range(0, grid[1], side)
    ]
    windows.sort(key=len, reverse=True)
    return torch.cat(windows), [len(window) for window in windows]


def sincos_2d(grid: Grid, side: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Fixed positions of `side` x `side` tokens a unit, in the order of `to_units`: [U, side², dim] float32.

    As in MAE (arXiv 2111.06377): half the channels tell the column, half the row, each by sines then cosines
    of dim / 4 frequencies 10000^(-4i / dim). `dim` is a multiple of 4.
    """
    rows, columns = (torch.arange(n * side, dtype=torch.float32, device=device) for n in grid)
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float32, device=device) / (dim // 4))

    def waves(positions: Tensor) -> Tensor:
        angles = positions[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # [n, dim / 2]

    shape = (*rows.shape, *columns.shape, dim // 2)  # `len` would fix them for torch.export
    raster = torch.cat([waves(columns)[None].expand(shape), waves(rows)[:, None].expand(shape)], dim=-1)
    return to_units(raster.permute(2, 0, 1)[None], side, 1)[0]


class SinCosPosition(nn.Module):
    """Fixed positions of `sincos_2d`, for any grid; the last grid's are kept, and none are in the state dict."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"2-D sine-cosine positions need a multiple of 4 channels, not {dim}")
        self.dim, self.side = dim, side
        self._kept: tuple[tuple[Grid, torch.device], Tensor] | None = None

    def forward(self, x: Tensor, grid: Grid, units: Tensor | None = None) -> Tensor:
        """Add positions to x [B, V·side², dim] of `units` [B, V] (None: all, in raster order)."""
        table = self.table(grid, x.device).to(x.dtype)  # [U, side², dim]
        positions = table[None] if units is None else table[units]
        return x + positions.flatten(1, 2)

    def table(self, grid: Grid, device: torch.device) -> Tensor:
        """Positions of all units, [U, side², dim] float32 on `device`."""
        # What is kept is of one grid, an exported or traced program may be for any, and compiled code would be compiled
        # again because another grid's is kept.
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return sincos_2d(grid, self.side, self.dim, device)
        if self._kept is None or self._kept[0] != (grid, device):
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (grid, device), sincos_2d(grid, self.side, self.dim, device)
        return self._kept[1]


def _levels(side: int) -> int:
    return side.bit_length() - 1


def _morton_dims(first: int, levels: int) -> list[int]:
    """Interleave the dimensions (grid, bits.., pixels) of rows and columns, counted from `first`."""
    rows = range(first, first + levels + 2)
    columns = range(first + levels + 2, first + 2 * levels + 4)
    return [d for pair in zip(rows, columns, strict=True) for d in pair]
