"""Patches of a window's mask: their pixels, their most frequent class, and which of them are learned from."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from coma.evaluation.dense.patches import IGNORED, chosen_patches, majority, patch_pixels


def test_the_pixels_of_a_patch_are_its_square():
    truth = torch.arange(2 * 12 * 12).view(2, 12, 12)
    pixels = patch_pixels(truth, 3)
    assert pixels.shape == (2, 3, 3, 16)
    assert torch.equal(pixels[1, 2, 0].view(4, 4), truth[1, 8:12, 0:4])


@given(seed=st.integers(0, 2**31), classes=st.integers(1, 20))
def test_the_most_frequent_class_is_torchs_mode(seed, classes):
    chance = torch.Generator().manual_seed(seed)
    pixels = torch.randint(classes + 1, (50, 16), generator=chance).to(torch.uint8)
    pixels[pixels == classes] = IGNORED
    assert torch.equal(majority(pixels, classes), pixels.mode(dim=1).values.long())


def test_ignored_pixels_count_like_a_class_of_their_own():
    pixels = torch.tensor([[1, 1, 255, 255], [0, 255, 255, 1], [255] * 4, [2, 2, 2, 255]], dtype=torch.uint8)
    assert majority(pixels, 3).tolist() == [1, IGNORED, IGNORED, 2]


@given(labelled=st.integers(0, 300), most=st.integers(0, 100), sample=st.integers(0, 2**40))
def test_chosen_patches_are_as_many_as_asked_for_and_always_the_same(labelled, most, sample):
    chosen = chosen_patches(sample, labelled, most)
    assert len(chosen) == min(labelled, most)
    assert torch.equal(chosen, chosen_patches(sample, labelled, most))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert not len(chosen) or chosen.max() < labelled


def test_every_patch_is_chosen_as_often_as_another():
    counts = torch.zeros(20)
    for sample in range(2000):
        counts[chosen_patches(sample, 20, 5)] += 1
    assert (counts - 500).abs().max() < 100  # 5 standard deviations
