"""The method, in the order in which to read it; docs/method.md tells it in two pages.

../pipeline/views.py  complementary views: which mask units each view sees
layout.py             order of tokens, so that windows and merges are reshapes
attention.py          DM-MSA: dynamic multi-window self-attention
blocks.py             patch embedding, merging, transformer block, stage
dyvit.py              DyViT, the backbone, and its variants
encoders.py           the interface of a backbone for pre-training, and timm's ViT under it
decoder.py            cross-attention decoder from visible to hidden patches
coma.py               CoMA: views through encoder, decoder and loss
mae.py                MAE, for comparison
independent.py        independent random masks, the control for complementarity
build.py              all of them by name
classifier.py         a backbone with a linear classifier, for fine-tuning
_timm.py              registration of DyViT with timm
"""
